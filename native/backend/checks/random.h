// The check of the random kernel.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkRandom(const Call& call);

}  // namespace meshwork
