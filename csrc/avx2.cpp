// The kernels for AVX2, whatever processor the compiler was told to build for: a pragma changes the
// target of what follows it. So the standard headers come before it; a function of theirs that was
// compiled for AVX2 here could be the one that the linker keeps for every file.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define PTL_KERNELS AVX2
#define PTL_NAME "avx2"
#define PTL_BYTES 32
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
