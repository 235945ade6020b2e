# What the CUDA backend and the emulator's build of its kernels share: the kernels (cuda_kernel_sources), the host code
# they call (cuda_shared_sources), and, in cuda_generated, cuda_kernel_files.inc (one MESHWORK_KERNEL_FILE(name) per file in
# kernels/) and functions_text.inc (elementwise/functions.h as a string, which goes in front of generated source).
set(cuda_folder ${PROJECT_SOURCE_DIR}/native/backend/cuda)
set(cuda_generated ${CMAKE_CURRENT_BINARY_DIR}/generated)
file(GLOB cuda_kernel_sources CONFIGURE_DEPENDS ${cuda_folder}/kernels/*.cu)
file(GLOB cuda_shared_sources CONFIGURE_DEPENDS ${cuda_folder}/elementwise/*.cc ${cuda_folder}/matmul/*.cc)
list(SORT cuda_kernel_sources)
list(APPEND cuda_shared_sources ${cuda_folder}/registry.cc ${PROJECT_SOURCE_DIR}/native/core/digest.cc)

set(kernel_files "")
foreach(source IN LISTS cuda_kernel_sources)
  get_filename_component(name ${source} NAME_WE)
  string(APPEND kernel_files "MESHWORK_KERNEL_FILE(${name})\n")
endforeach()
file(CONFIGURE OUTPUT ${cuda_generated}/cuda_kernel_files.inc CONTENT "${kernel_files}" @ONLY)

set(functions ${cuda_folder}/elementwise/functions.h)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${functions})
file(READ ${functions} functions_text)
file(GENERATE OUTPUT ${cuda_generated}/functions_text.inc CONTENT "R\"meshwork(${functions_text})meshwork\"")
