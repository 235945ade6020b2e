// The check of rope.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkRope(const Call& call);

}  // namespace meshwork
