// The check of the elementwise kernel.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkElementwise(const Call& call);

}  // namespace meshwork
