// The check of the copy kernel.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkCopy(const Call& call);

}  // namespace meshwork
