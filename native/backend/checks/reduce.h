// The check of the reduce kernel.
#pragma once
#include "backend/kernel.h"

namespace meshwork {

Status checkReduce(const Call& call);

}  // namespace meshwork
