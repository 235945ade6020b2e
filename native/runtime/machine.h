// What this machine is: shown by `meshwork doctor`, and the default number of threads.
#pragma once
#include <string>

namespace meshwork {

// Cores this process may run on (its affinity mask where there is one), at least 1.
int machineCores();

// The widest vector instructions usable here, e.g. "avx512 bf16 amx", "avx2", "baseline".
std::string machineIsa();

}  // namespace meshwork
