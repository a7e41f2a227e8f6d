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

// What a warpgroup sums its 64 outputs x tokens in: the wgmma accumulator layout, in which a thread
// has rows g and g + 8 and, for every 8 tokens, two neighbouring ones of each. The tensor cores sum
// a group of products; `add` adds it, times its scale, to the others.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "grouped_gemm/config.h"
#include "grouped_gemm/wgmma.cuh"

namespace w4afp8 {

// Groups and their sum in float32.
template <int kTokens_>
struct FloatSums {
  static constexpr int kTokens = kTokens_;
  static constexpr bool kInPlace = false;
  template <int kWidth>
  using Group = float[kWidth / 2];

  float v[kTokens / 2];

  template <int kWidth>
  __device__ __forceinline__ void clear(float) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) v[i] = 0.0f;
  }

  template <int kWidth>
  __device__ __forceinline__ void add(const Group<kWidth>& group, const float (&scale)[2], float) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) v[i] = fmaf(group[i], scale[i / 2 % 2], v[i]);
  }

  template <int kWidth>
  __device__ __forceinline__ void add(const Group<kWidth>& group, float) {
#pragma unroll
    for (int i = 0; i < kWidth / 2; ++i) v[i] += group[i];
  }

  // Tokens `first` and `first + 1` of this thread's row g (half 0) or g + 8, `first` counted in
  // steps of 8.
  __device__ __forceinline__ float2 pair(int first, int half) const {
    return make_float2(v[first / 2 + half * 2], v[first / 2 + half * 2 + 1]);
  }

  __device__ __forceinline__ float unit(int) const { return 1.0f; }
  __device__ static float largest_scale(int, float) { return 1.0f; }
  static constexpr float kNoUnit = 1.0f;
};

// The tensor cores sum all k blocks in float32 accumulators, with no registers besides. They drop what
// lies 13 bits below the largest number of a step, so every few k blocks most of each sum is carried
// to shared memory: the E5M2 number next to it, in one byte. Sum and carried part add up exactly, and
// at most an eighth is left, except beyond E5M2's range. `kUnit`: what the bytes count in.
template <int kTokens, int kUnit>
struct CarriedSums : FloatSums<kTokens> {
  static constexpr bool kInPlace = true;
  static constexpr int kCarriedBytes = 128 * kTokens / 2;  // of a warpgroup
  using FloatSums<kTokens>::v;

  // Sums are carried by eights, of 16 tokens; those beyond the width were cleared (MainLoop::kCleared).
  template <int kWidth>
  static constexpr int kEights = (kWidth + 15) / 16;

  // `carried`: 8 bytes of this thread's; the next are 128 further on.
  template <int kWidth>
  __device__ __forceinline__ void carry(uint2* carried, bool is_first) {
#pragma unroll
    for (int i = 0; i < kEights<kWidth>; ++i) {
      if (!is_first) add_eight(&v[8 * i], carried[128 * i]);
      carried[128 * i] = make_uint2(take_four(&v[8 * i]), take_four(&v[8 * i + 4]));
    }
  }

  template <int kWidth>
  __device__ __forceinline__ void collect(const uint2* carried) {
#pragma unroll
    for (int i = 0; i < kEights<kWidth>; ++i) add_eight(&v[8 * i], carried[128 * i]);
  }

 private:
  __device__ __forceinline__ static void add_eight(float* sums, uint2 bytes) {
    add_four(sums, bytes.x, kUnit);
    add_four(sums + 4, bytes.y, kUnit);
  }

  // An E5M2 number is the upper byte of a half.
  __device__ __forceinline__ static void add_four(float* sums, uint32_t bytes, float unit) {
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint32_t halves = __byte_perm(bytes, 0, pair == 0 ? 0x1404 : 0x3424);
      const float2 part = __half22float2(*reinterpret_cast<const __half2*>(&halves));
      sums[2 * pair] = fmaf(part.x, unit, sums[2 * pair]);
      sums[2 * pair + 1] = fmaf(part.y, unit, sums[2 * pair + 1]);
    }
  }

  __device__ __forceinline__ static uint32_t take_four(float* sums) {
    uint32_t bytes = 0;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      constexpr float kInverse = 1.0f / kUnit;
      const float2 two = make_float2(sums[2 * pair] * kInverse, sums[2 * pair + 1] * kInverse);
      bytes |= uint32_t{__nv_cvt_float2_to_fp8x2(two, __NV_SATFINITE, __NV_E5M2)} << (16 * pair);
    }
    add_four(sums, bytes, -kUnit);
    return bytes;
  }
};

// Sums in units of their own for each of the two rows, two tokens a register.
//
// The tensor cores sum one k block in halves, which is added with its scale by one instruction for
// two tokens. A k block cannot overflow: 128 products of Format::kLargest and 448 are within 65504.
// Units are powers of two, chosen at the first k block so that no sum of in_features / 128 of them
// can overflow either, and raised where a later one's scale is too large for them.
template <int kTokens_>
struct HalfSums {
  static constexpr int kTokens = kTokens_;
  static constexpr bool kInPlace = false;
  template <int kWidth>
  using Group = uint32_t[kWidth / 4];

  uint32_t v[kTokens / 4];
  float inverse[2];  // of the units

  // `first_inverse`: of the units to begin with.
  template <int kWidth>
  __device__ __forceinline__ void clear(float first_inverse) {
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) v[i] = 0;
    inverse[0] = inverse[1] = first_inverse;
  }

  __device__ __forceinline__ float2 pair(int first, int half) const {
    return __half22float2(as_half2(v[first / 4 + half]));
  }

  // Of 16 tokens as four 8x8 matrices: of rows g and g + 8 for the first 8 tokens, and for the others.
  __device__ __forceinline__ uint32_t (&matrices(int first))[4] {
    return *reinterpret_cast<uint32_t (*)[4]>(&v[first / 4]);
  }
  __device__ __forceinline__ const uint32_t (&matrices(int first) const)[4] {
    return *reinterpret_cast<const uint32_t (*)[4]>(&v[first / 4]);
  }

  __device__ __forceinline__ float unit(int half) const { return inverse_of(inverse[half]); }

  static constexpr float kNoUnit = 0x1p100f;  // the inverse of less than every scale asks for

  // What a scale may be in the units of a sum of so many k blocks whose elements are at most
  // `largest`: a power of two.
  __device__ static float largest_scale(int k_blocks, float largest) {
    return fminf(power_of_two(65504.0f / (128 * 448 * largest) / k_blocks), 1.0f);
  }

  // v += group * scale for both rows. `most`: the largest scale.
  template <int kWidth>
  __device__ __forceinline__ void add(const Group<kWidth>& group, const float (&scale)[2],
                                      float most) {
    const bool fits = fmaxf(fabsf(scale[0]) * inverse[0], fabsf(scale[1]) * inverse[1]) <= most;
    if (!__all_sync(0xFFFFFFFFu, fits)) raise_units<kWidth>(scale, most);
    const __half2 factor[2] = {__float2half2_rn(scale[0] * inverse[0]),
                               __float2half2_rn(scale[1] * inverse[1])};
    add<kWidth>(group, factor);
  }

  // The same for a scale of 1 where `inverse` is `most` already.
  template <int kWidth>
  __device__ __forceinline__ void add(const Group<kWidth>& group, float most) {
    const __half2 factor = __float2half2_rn(most);
    add<kWidth>(group, {factor, factor});
  }

 private:
  template <int kWidth>
  __device__ __forceinline__ void add(const Group<kWidth>& group, const __half2 (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) {
      v[i] = as_bits(__hfma2(as_half2(group[i]), factor[i % 2], as_half2(v[i])));
    }
  }

  // To 8 times what the scales ask for, so that few groups raise them again.
  template <int kWidth>
  __device__ __forceinline__ void raise_units(const float (&scale)[2], float most) {
    __half2 ratio[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float wanted = inverse_of(power_of_two(fabsf(scale[half]) / most) * 8.0f);
      const float next = fminf(inverse[half], wanted);
      ratio[half] = __float2half2_rn(next * inverse_of(inverse[half]));
      inverse[half] = next;
    }
#pragma unroll
    for (int i = 0; i < kWidth / 4; ++i) v[i] = as_bits(__hmul2(as_half2(v[i]), ratio[i % 2]));
  }

  // The largest power of two up to x, within 2^-100 .. 2^100.
  __device__ __forceinline__ static float power_of_two(float x) {
    return __uint_as_float(__float_as_uint(fminf(fmaxf(x, 0x1p-100f), 0x1p100f)) & 0x7F800000u);
  }

  // Of a power of two.
  __device__ __forceinline__ static float inverse_of(float x) {
    return __uint_as_float((254u << 23) - __float_as_uint(x));
  }

  __device__ __forceinline__ static __half2 as_half2(uint32_t bits) {
    return *reinterpret_cast<const __half2*>(&bits);
  }
  __device__ __forceinline__ static uint32_t as_bits(__half2 pair) {
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

// The sums of a format, of so many tokens.
template <Summation kSummation, int kTokens, class Format>
struct SumsOf;
template <int kTokens, class Format>
struct SumsOf<Summation::kHalves, kTokens, Format> {
  using Type = HalfSums<kTokens>;
};
template <int kTokens, class Format>
struct SumsOf<Summation::kPromoted, kTokens, Format> {
  using Type = FloatSums<kTokens>;
};
template <int kTokens, class Format>
struct SumsOf<Summation::kCarried, kTokens, Format> {
  using Type = CarriedSums<kTokens, Format::kCarriedUnit>;
};

}  // namespace w4afp8
