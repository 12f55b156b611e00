// The products with coded weights of one instruction set, compiled as kernels.cpp is.
#include "coded_heads.h"
#include "coded_linear.h"

namespace pagoda {

extern const CodedKernels PAGODA_CODED_TABLE;
const CodedKernels PAGODA_CODED_TABLE = {code_rows, coded_linear, coded_heads};

}  // namespace pagoda
