// The kernels for AVX-512, whatever processor the compiler was told to build for: a pragma changes
// the target of what follows it. So the standard headers come before it; a function of theirs that
// was compiled for AVX-512 here could be the one that the linker keeps for every file.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
#endif
#define PTL_KERNELS AVX512
#define PTL_NAME "avx512"
#define PTL_BYTES 64
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
