// The kernels for the instruction set that the compiler builds for by default: SSE2 on x86-64, NEON
// on ARM.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "kernels.h"

#define PTL_KERNELS BASELINE
#define PTL_NAME "baseline"
#define PTL_BYTES 16
#include "kernels.inl"
