// Holds abi/cublaslt.h against the real headers; compiled where CMake finds them.
#include <cublasLt.h>

#include "backend/cuda/abi/alike.h"
#include "backend/cuda/abi/cublaslt.h"

namespace meshwork::cuda::abi {

static_assert(kCublasSuccess == CUBLAS_STATUS_SUCCESS && kCublasNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(int{kComputeF32} == CUBLAS_COMPUTE_32F && int{kComputeF64} == CUBLAS_COMPUTE_64F);
static_assert(int{kComputeFastTf32} == CUBLAS_COMPUTE_32F_FAST_TF32);
static_assert(int{kOpN} == CUBLAS_OP_N && int{kOpT} == CUBLAS_OP_T);
static_assert(int{kDescPointerMode} == CUBLASLT_MATMUL_DESC_POINTER_MODE);
static_assert(int{kDescTransA} == CUBLASLT_MATMUL_DESC_TRANSA && int{kDescTransB} == CUBLASLT_MATMUL_DESC_TRANSB);
static_assert(int{kDescEpilogue} == CUBLASLT_MATMUL_DESC_EPILOGUE);
static_assert(int{kDescBiasPointer} == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(int{kDescEpilogueAuxPointer} == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER);
static_assert(int{kDescEpilogueAuxLd} == CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD);
static_assert(int{kDescAScalePointer} == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
static_assert(int{kDescBScalePointer} == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(int{kDescCScalePointer} == CUBLASLT_MATMUL_DESC_C_SCALE_POINTER);
static_assert(int{kDescDScalePointer} == CUBLASLT_MATMUL_DESC_D_SCALE_POINTER);
static_assert(int{kDescAmaxDPointer} == CUBLASLT_MATMUL_DESC_AMAX_D_POINTER);
static_assert(int{kDescFastAccum} == CUBLASLT_MATMUL_DESC_FAST_ACCUM);
static_assert(int{kDescBiasDataType} == CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE);
static_assert(int{kEpilogueDefault} == CUBLASLT_EPILOGUE_DEFAULT && int{kEpilogueRelu} == CUBLASLT_EPILOGUE_RELU);
static_assert(int{kEpilogueBias} == CUBLASLT_EPILOGUE_BIAS && int{kEpilogueGelu} == CUBLASLT_EPILOGUE_GELU);
static_assert(int{kEpilogueGeluBias} == CUBLASLT_EPILOGUE_GELU_BIAS);
static_assert(int{kEpilogueGeluAux} == CUBLASLT_EPILOGUE_GELU_AUX);
static_assert(int{kEpilogueGeluAuxBias} == CUBLASLT_EPILOGUE_GELU_AUX_BIAS);
static_assert(int{kEpilogueDGelu} == CUBLASLT_EPILOGUE_DGELU);
static_assert(int{kEpilogueDGeluBgrad} == CUBLASLT_EPILOGUE_DGELU_BGRAD);
static_assert(int{kEpilogueBgradA} == CUBLASLT_EPILOGUE_BGRADA && int{kEpilogueBgradB} == CUBLASLT_EPILOGUE_BGRADB);
static_assert(int{kLayoutOrder} == CUBLASLT_MATRIX_LAYOUT_ORDER);
static_assert(int{kLayoutBatchCount} == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT);
static_assert(int{kLayoutBatchStride} == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET);
static_assert(int{kPreferenceWorkspace} == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(int{kPreferenceReductionMask} == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK);
static_assert(int{kPreferenceAlignmentA} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(int{kPreferenceAlignmentB} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(int{kPreferenceAlignmentC} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(int{kPreferenceAlignmentD} == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(sizeof(CublasLtAlgo) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(CublasLtHeuristic) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(CublasLtHeuristic, workspaceSize) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));
static_assert(offsetof(CublasLtHeuristic, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));

static_assert(alike<decltype(CublasLt::create), decltype(&cublasLtCreate)>);
static_assert(alike<decltype(CublasLt::descCreate), decltype(&cublasLtMatmulDescCreate)>);
static_assert(alike<decltype(CublasLt::descSet), decltype(&cublasLtMatmulDescSetAttribute)>);
static_assert(alike<decltype(CublasLt::layoutCreate), decltype(&cublasLtMatrixLayoutCreate)>);
static_assert(alike<decltype(CublasLt::layoutSet), decltype(&cublasLtMatrixLayoutSetAttribute)>);
static_assert(alike<decltype(CublasLt::preferenceSet), decltype(&cublasLtMatmulPreferenceSetAttribute)>);
static_assert(alike<decltype(CublasLt::heuristic), decltype(&cublasLtMatmulAlgoGetHeuristic)>);
static_assert(alike<decltype(CublasLt::matmul), decltype(&cublasLtMatmul)>);

}  // namespace meshwork::cuda::abi
