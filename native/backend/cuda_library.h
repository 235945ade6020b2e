// Opens meshwork_cuda.so.
#pragma once
#include "backend/cuda/entry.h"

namespace meshwork::cuda {

// The library's entry; the same at every call. Fails with `device`, in words for the user, where there is none.
Status loadEntry(const Entry** entry);

}  // namespace meshwork::cuda
