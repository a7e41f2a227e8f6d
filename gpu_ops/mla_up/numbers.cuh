// Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// The 16-bit numbers that weights become: E2M1 codes by bit fields, scales as powers of two.
#pragma once

#include "mla_up/layout.h"

namespace w4afp8 {

// One instruction, where the compiler would take a shift, a mask and an addition.
__device__ __forceinline__ uint32_t multiply_and_add(uint32_t x, uint32_t factor, uint32_t term) {
  uint32_t sum;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(x), "r"(factor), "r"(term));
  return sum;
}

// A number format: codes to `magnitude * 2^-bias` by bit fields alone, then exact products by powers
// of two. All functions work on two numbers in a word.
template <DataType kType>
struct MlaNumbers;

template <>
struct MlaNumbers<DataType::kBFloat16> {
  // The exponent's two low bits and the first fraction bit: magnitude * 2^-126, subnormal below 1.
  __device__ __forceinline__ static uint32_t field(uint32_t word, int fragment) {
    if (fragment == 0) return word & 0x81C081C0u;
    if (fragment == 1) return (word << 3) & 0x81C081C0u;
    if (fragment == 2) return ((word << 6) & 0x01C001C0u) | ((word << 1) & 0x80008000u);
    return ((word >> 3) & 0x01C001C0u) | ((word << 2) & 0x80008000u);
  }
  __device__ __forceinline__ static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
  }
  // Two powers of two for a pair of scale bytes s: their product is 2^(s - 127 + 126). The first
  // holds both where every s is below 128 (kOneFactor), as weights' scales are.
  template <bool kOneFactor>
  __device__ __forceinline__ static uint2 powers(uint32_t pair) {
    if constexpr (kOneFactor) return make_uint2(multiply_and_add(pair, 128, 0x3F003F00u), 0);
    // s = 0 too: 0x0040 is 2^-127.
    return make_uint2(0x7E807E80u, __vmaxu2(pair << 7, 0x00400040u));
  }
};

template <>
struct MlaNumbers<DataType::kFloat16> {
  // The exponent's two low bits and the first fraction bit: magnitude * 2^-14.
  __device__ __forceinline__ static uint32_t field(uint32_t word, int fragment) {
    if (fragment == 0) return ((word << 3) & 0x0E000E00u) | (word & 0x80008000u);
    if (fragment == 1) return ((word << 6) & 0x0E000E00u) | ((word << 3) & 0x80008000u);
    if (fragment == 2) return ((word << 9) & 0x0E000E00u) | ((word << 1) & 0x80008000u);
    return (word & 0x0E000E00u) | ((word << 2) & 0x80008000u);
  }
  __device__ __forceinline__ static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
  }
  // Of a pair of distances d = largest - s, the power 2^(15 - d) (kOneFactor, d at most 15). Else of
  // t = 37 - d two powers, whose product is 2^(t - 24 + 14), zero for 0.
  template <bool kOneFactor>
  __device__ __forceinline__ static uint2 powers(uint32_t pair) {
    if constexpr (kOneFactor) return make_uint2(multiply_and_add(pair, -1024u, 0x78007800u), 0);
    const uint32_t second = __vminu2(pair, 0x001E001Eu);
    return make_uint2((pair - second + 0x00140014u) << 10, second << 10);
  }
};

}  // namespace w4afp8
