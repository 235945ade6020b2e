// Compiled kernels on disk, by the digest of what they were compiled from.
#pragma once
#include <string>

namespace meshwork::cuda {

// The code kept as `name` in `folder`; false where there is none or where it is not whole (its digest is kept with it).
bool readKernel(const std::string& folder, const std::string& name, std::string* code);

// Keeps it: written beside and renamed, so that others never see half of it. What cannot be written is not kept.
void writeKernel(const std::string& folder, const std::string& name, const std::string& code);

}  // namespace meshwork::cuda
