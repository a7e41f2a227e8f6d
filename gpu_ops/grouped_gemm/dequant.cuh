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

// Weight formats: from the packed words of shared memory to FP8 fragments for wgmma. A format says
// how many scale bytes an output has per k block, how words become fragments, and what the epilogue
// must multiply by to undo the fixed exponent of the fragments.
#pragma once

#include <cuda_fp8.h>

#include "common/weight_layout.h"
#include "grouped_gemm/config.h"
#include "grouped_gemm/wgmma.cuh"

namespace w4afp8 {

constexpr int kStepsPerBlock = 4;  // wgmma k steps (32) of a k block (128)

// One 64 x 128 sub-block for one thread: words[2 * step + column half], see weight_layout.h.
struct PackedWords {
  uint32_t words[2 * kStepsPerBlock];

  __device__ __forceinline__ void load(const uint8_t* sub_block, int thread) {
    const uint4 first = *reinterpret_cast<const uint4*>(sub_block + 16 * thread);
    const uint4 second = *reinterpret_cast<const uint4*>(sub_block + 2048 + 16 * thread);
    words[0] = first.x, words[1] = first.y, words[2] = first.z, words[3] = first.w;
    words[4] = second.x, words[5] = second.y, words[6] = second.z, words[7] = second.w;
  }
};

constexpr float power_of_two(int exponent) {
  return exponent < 0 ? 1 / power_of_two(-exponent) : static_cast<float>(1 << exponent);
}

// A operand of one wgmma k step: registers {row g, row g + 8} x {columns 0-15, columns 16-31}.
using Fragment = uint32_t[4];

// int4 codes are stored as n << 1 | s; (w & 0x0E) + (w & 1) * 0x82 is the E4M3 byte of 2q * 2^-9.
// No carry crosses a byte: 0x0E + 0x82 = 0x90. Four codes at once.
__device__ __forceinline__ uint32_t int4_to_e4m3(uint32_t word) {
  return (word & 0x0E0E0E0Eu) + (word & 0x01010101u) * 0x82u;
}

// Where the tables of folded group scales come from.
enum class Tables {
  kNear,      // arithmetic: right where no group is far below its channel's largest
  kLookedUp,  // shared memory, which has no time to spare
  kEither,  // arithmetic, or shared memory for threads that have far groups: by a branch, so not beside products
};

struct Int4PerChannel {
  static constexpr GroupScaling kGroupScaling = GroupScaling::kNone;
  static constexpr Summation kSummation = Summation::kHalves;
  using Element = E4M3;                       // of the fragments
  static constexpr float kLargest = 0x1p-5f;  // magnitude of an element
  static constexpr float kFactor = 256.0f;    // fragments hold 2q * 2^-9
  static constexpr int kScaleBytes = 0;       // of an output and k block
  static constexpr bool kIsGated = false;     // the outputs, in the epilogue
  static constexpr int kTableEntries = 0;

  struct RowScales {
    __device__ __forceinline__ void load(const uint8_t*, int) {}
    __device__ static constexpr bool has_far() { return false; }
  };

  template <int kStepsAtOnce, Tables kTables>
  __device__ __forceinline__ static void dequantise(const PackedWords& packed, const RowScales&,
                                                    const uint2*, Fragment (&a)[kStepsPerBlock]) {
#pragma unroll
    for (int i = 0; i < 2 * kStepsPerBlock; ++i) {
      a[i / 2][i % 2 * 2] = int4_to_e4m3(packed.words[i]);
      a[i / 2][i % 2 * 2 + 1] = int4_to_e4m3(packed.words[i] >> 4);
    }
  }
};

// int4 with a scale per group of whole k blocks.
struct Int4Scaled : Int4PerChannel {
  static constexpr GroupScaling kGroupScaling = GroupScaling::kScaled;
  static constexpr int kScaleBytes = 4;  // room for float32
};

// int4 summed in float32 registers, with group scales of any length or none.
struct Int4Promoted : Int4Scaled {
  static constexpr Summation kSummation = Summation::kPromoted;
  static constexpr int kScaleBytes = 4 * kStepsPerBlock;  // a group a step
};

// int4 per channel summed in float32 accumulators; about the longest interval with which normal data keeps
// an error within twice float16's rounding (docs/numerics.md).
struct Int4Carried : Int4PerChannel {
  static constexpr Summation kSummation = Summation::kCarried;
  static constexpr int kCarriedBlocks = 22, kCarriedUnit = 1;
};

// MXFP4: E2M1 codes with their group's exponent folded in, as E5M2 numbers, so that groups cost
// nothing in the accumulation. A table of the bytes of {0, .5, 1, 1.5, 2, 3, 4, 6} * 2^r for every
// scale byte serves as prmt's operand; the channel's largest group, byte 254, has r = kTop. Exact
// down to r = -15, below that rounded to the grid of 2^-16.
template <int kTop>
struct FoldedMxfp4 {
  static constexpr GroupScaling kGroupScaling = GroupScaling::kFolded;
  using Element = E5M2;
  static constexpr float kLargest = power_of_two(kTop) * 6;
  static constexpr float kFactor = power_of_two(-kTop);
  static constexpr int kScaleBytes = 4;  // one byte for each k step
  static constexpr bool kIsGated = false;
  static constexpr int kTableEntries = 256;

  struct RowScales {
    uint32_t bytes[2];  // of rows g and g + 8

    __device__ __forceinline__ void load(const uint8_t* scales, int row) {
      bytes[0] = *reinterpret_cast<const uint32_t*>(scales + 4 * row);
      bytes[1] = *reinterpret_cast<const uint32_t*>(scales + 4 * (row + 8));
    }

    __device__ __forceinline__ uint32_t byte(int step, int half) const {
      return bytes[half] >> (8 * step) & 0xFF;
    }

    // Whether one of the groups is far: more than 6 binades below its channel's largest. Arithmetic would reach 4
    // further, but the instructions to ask for that take up to 2% longer (kernel-log.md, run 102).
    __device__ __forceinline__ bool has_far() const {
      return (~(bytes[0] & bytes[1]) & 0xF8F8F8F8u) != 0;
    }
  };

  // E5M2 bytes of the eight magnitudes * 2^r, rounded to nearest even; `entry`: the scale byte.
  __device__ static uint2 table(int entry) {
    const int r = entry - 254 + kTop;
    const float power =
        r < -126 ? 0.0f : __int_as_float((r + 127) << 23);  // less is nothing in E5M2
    return make_uint2(four_bytes(make_float4(0.0f, 0.5f, 1.0f, 1.5f), power),
                      four_bytes(make_float4(2.0f, 3.0f, 4.0f, 6.0f), power));
  }
  __device__ static uint32_t four_bytes(float4 magnitudes, float power) {
    const auto two = [&](float first, float second) -> uint32_t {
      return __nv_cvt_float2_to_fp8x2(make_float2(first * power, second * power), __NV_SATFINITE,
                                      __NV_E5M2);
    };
    return two(magnitudes.x, magnitudes.y) | two(magnitudes.z, magnitudes.w) << 16;
  }

  // The same for groups that are not far, whose numbers are all normal: their bytes grow by 4 with each binade.
  __device__ __forceinline__ static uint2 near_table(uint32_t entry) {
    constexpr uint32_t kOne = (15 + kTop) << 2;  // the byte of 2^kTop
    constexpr uint32_t kBut0 = 0x01010100u, kAll = 0x01010101u;
    constexpr uint32_t kFirst = kOne * kBut0 + (2u << 24) - (4u << 8);  // 0, .5, 1, 1.5
    constexpr uint32_t kSecond = (kOne + 4) * kAll + 0x06040200u;       // 2, 3, 4, 6
    return make_uint2(entry * (4 * kBut0) + (kFirst - 254 * 4 * kBut0),
                      entry * (4 * kAll) + (kSecond - 254 * 4 * kAll));
  }

  // `selectors`: four of three bits each, in the low half word. (__byte_perm would mask them once more.)
  __device__ __forceinline__ static uint32_t apply(uint2 table, uint32_t word_at_signs,
                                                   uint32_t selectors) {
    uint32_t magnitudes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(magnitudes) : "r"(table.x), "r"(table.y), "r"(selectors));
    return magnitudes | (word_at_signs & 0x80808080u);
  }

  // `kStepsAtOnce`: k steps whose tables are in registers together.
  template <int kStepsAtOnce, Tables kTables>
  __device__ __forceinline__ static void dequantise(const PackedWords& packed,
                                                    const RowScales& scales, const uint2* tables,
                                                    Fragment (&a)[kStepsPerBlock]) {
#pragma unroll
    for (int first = 0; first < kStepsPerBlock; first += kStepsAtOnce) {
      uint2 table[kStepsAtOnce][2];
#pragma unroll
      for (int i = 0; i < 2 * kStepsAtOnce; ++i) {
        const int step = first + i / 2, half = i % 2;
        table[i / 2][half] = kTables == Tables::kLookedUp
                                 ? tables[scales.byte(step, half)]
                                 : near_table(__byte_perm(scales.bytes[half], 0, 0x4440 | step));
      }
      if (kTables == Tables::kEither && scales.has_far()) {
#pragma unroll
        for (int i = 0; i < 2 * kStepsAtOnce; ++i) {
          table[i / 2][i % 2] = tables[scales.byte(first + i / 2, i % 2)];
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kStepsAtOnce; ++i) {
        const int step = first + i / 2, column = i % 2;
        const uint32_t word = packed.words[2 * step + column];
        const uint32_t selectors = word & 0x77777777u;
        a[step][2 * column] = apply(table[i / 2][0], word, selectors);
        a[step][2 * column + 1] = apply(table[i / 2][1], word << 4, selectors >> 16);
      }
    }
  }
};

// In halves a sum of 128 products of up to 6 * 2^-3 * 448 does not overflow: exact in 12 binades.
struct Mxfp4 : FoldedMxfp4<-3> {
  static constexpr Summation kSummation = Summation::kHalves;
};
// In float32 the elements' whole range serves: exact in 27 binades.
struct Mxfp4Promoted : FoldedMxfp4<12> {
  static constexpr Summation kSummation = Summation::kPromoted;
};
struct Mxfp4Carried : FoldedMxfp4<12> {
  static constexpr Summation kSummation = Summation::kCarried;
  static constexpr int kCarriedBlocks = 13, kCarriedUnit = 1 << 16;
};

// A format with a gated activation behind it: kernels of their own, so that the others carry nothing of it.
template <class Format>
struct Gated : Format {
  static constexpr bool kIsGated = true;
};

}  // namespace w4afp8
