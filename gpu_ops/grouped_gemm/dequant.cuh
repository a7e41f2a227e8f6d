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

// Weight formats: from the packed words of shared memory to E4M3 fragments for wgmma. A format says
// how many scale bytes an output has per k block, how words become fragments, and what the epilogue
// must multiply by to undo the fixed exponent of the fragments.
#pragma once

#include "common/weight_layout.h"
#include "grouped_gemm/params.h"

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

// A operand of one wgmma k step: registers {row g, row g + 8} x {columns 0-15, columns 16-31}.
using Fragment = uint32_t[4];

// int4 codes are stored as n << 1 | s; (w & 0x0E) + (w & 1) * 0x82 is the E4M3 byte of 2q * 2^-9.
// No carry crosses a byte: 0x0E + 0x82 = 0x90. Four codes at once.
__device__ __forceinline__ uint32_t int4_to_e4m3(uint32_t word) {
  return (word & 0x0E0E0E0Eu) + (word & 0x01010101u) * 0x82u;
}

// How a format's group scales reach the sums.
enum class GroupScaling {
  kNone,      // there are none
  kFolded,    // in the fragments
  kScaled,    // sums of a k block are multiplied by them
  kPromoted,  // sums of a k step are
};

struct Int4PerChannel {
  static constexpr GroupScaling kGroupScaling = GroupScaling::kNone;
  static constexpr bool kSumsInHalves = true;
  static constexpr int kScaleBytes = 0;
  static constexpr float kFactor = 256.0f;  // fragments hold 2q * 2^-9

  struct RowScales {
    __device__ __forceinline__ void load(const uint8_t*, int) {}
  };

  template <int kStepsAtOnce>
  __device__ __forceinline__ static void dequantise(const PackedWords& packed, const RowScales&,
                                                    const uint2*, Fragment (&a)[kStepsPerBlock]) {
#pragma unroll
    for (int i = 0; i < 2 * kStepsPerBlock; ++i) {
      a[i / 2][i % 2 * 2] = int4_to_e4m3(packed.words[i]);
      a[i / 2][i % 2 * 2 + 1] = int4_to_e4m3(packed.words[i] >> 4);
    }
  }
};

// int4 with a scale per group of one or two k steps: the tensor cores sum one step, which is then
// promoted to float32 registers with its group's scale.
struct Int4Promoted : Int4PerChannel {
  static constexpr bool kSumsInHalves = false;
  static constexpr GroupScaling kGroupScaling = GroupScaling::kPromoted;
  static constexpr int kScaleBytes = 4 * kStepsPerBlock;  // room for float32, a group a step
};

// int4 with a scale per group of whole k blocks: the sums of a k block are added with it.
struct Int4Scaled : Int4PerChannel {
  static constexpr GroupScaling kGroupScaling = GroupScaling::kScaled;
  static constexpr int kScaleBytes = 4;  // room for float32
};

// MXFP4: E2M1 codes with their group's exponent folded in. A table of the E4M3 bytes of
// {0, .5, 1, 1.5, 2, 3, 4, 6} * 2^r, r = byte - 248 in -14 .. 6, serves as prmt's operand. Exact for
// r >= -8, which is a spread of 14 binades in a channel; below, rounded to the E4M3 grid of 2^-9.
struct Mxfp4 {
  static constexpr GroupScaling kGroupScaling = GroupScaling::kFolded;
  static constexpr bool kSumsInHalves = false;  // halves cannot hold so many binades
  static constexpr int kScaleBytes = 4;         // one byte for each k step
  static constexpr float kFactor = 0x1p-6f;
  static constexpr int kTableEntries = 21;
  static constexpr int kLowestByte = 234;  // every smaller byte is all zeros too

  struct RowScales {
    uint32_t bytes[2];  // of rows g and g + 8

    __device__ __forceinline__ void load(const uint8_t* scales, int row) {
      bytes[0] = *reinterpret_cast<const uint32_t*>(scales + 4 * row);
      bytes[1] = *reinterpret_cast<const uint32_t*>(scales + 4 * (row + 8));
    }

    __device__ __forceinline__ uint32_t byte(int step, int half) const {
      return bytes[half] >> (8 * step) & 0xFF;
    }

    // Whether near_table has them all: every byte is 248 or more.
    __device__ __forceinline__ bool are_near() const {
      constexpr uint32_t kNear = 0xF8F8F8F8u;
      return (bytes[0] & bytes[1] & kNear) == kNear;
    }
  };

  // E4M3 byte of magnitude * 2^r rounded to nearest even; table entry byte - kLowestByte.
  __device__ static uint32_t table_byte(int entry, int code) {
    const int r = entry + kLowestByte - 248;
    const int mantissa = code < 2 ? code : 2 + (code & 1);  // in units of 0.5 * 2^exponent
    const int exponent = code < 2 ? 0 : code / 2 - 1;
    const int shift = exponent + r + 8;  // value = mantissa * 2^shift in units of 2^-9
    if (mantissa == 0) return 0;
    if (shift < 0) {
      const int kept = mantissa >> -shift, lost = mantissa - (kept << -shift);
      const int half = 1 << (-shift - 1);
      return kept + (lost > half || (lost == half && (kept & 1)));
    }
    int significand = mantissa << (shift > 3 ? 3 : shift), binades = shift > 3 ? shift - 3 : 0;
    while (significand >= 16) significand >>= 1, ++binades;  // exact: at most 2 significant bits
    while (significand < 8 && binades > 0) significand <<= 1, --binades;
    // E4M3 bytes are linear in the significand with 3 fraction bits, one binade every 8 codes.
    return significand + 8 * binades;
  }

  // `selectors`: four of three bits each, in the low half word.
  __device__ __forceinline__ static uint32_t apply(uint2 table, uint32_t word_at_signs,
                                                   uint32_t selectors) {
    return __byte_perm(table.x, table.y, selectors) | (word_at_signs & 0x80808080u);
  }

  // Table of a group within 6 binades of its channel's largest: the seven nonzero bytes of r = 0
  // plus 8 * r. No carry crosses a byte: 0x30 .. 0x4C + 48.
  __device__ __forceinline__ static uint2 near_table(uint32_t byte) {
    constexpr uint32_t kLow = 0x3C383000u - 248u * 0x08080800u;
    constexpr uint32_t kHigh = 0x4C484440u - 248u * 0x08080808u;
    return make_uint2(byte * 0x08080800u + kLow, byte * 0x08080808u + kHigh);
  }

  // Only the far tables are branched around, by a whole warp: two ways through everything cost 6% at
  // 1024 tokens an expert, a branch of each thread's own 3%, predicated loads 4%.
  template <int kStepsAtOnce>
  __device__ __forceinline__ static void dequantise(const PackedWords& packed,
                                                    const RowScales& scales,
                                                    const uint2* far_tables,
                                                    Fragment (&a)[kStepsPerBlock]) {
    const bool near = __all_sync(0xFFFFFFFFu, scales.are_near());  // all of the warp take one way
#pragma unroll
    for (int first = 0; first < kStepsPerBlock; first += kStepsAtOnce) {
      uint2 tables[kStepsAtOnce][2];
#pragma unroll
      for (int i = 0; i < 2 * kStepsAtOnce; ++i) {
        tables[i / 2][i % 2] = near_table(scales.byte(first + i / 2, i % 2));
      }
      if (!near) {
#pragma unroll
        for (int i = 0; i < 2 * kStepsAtOnce; ++i) {
          const int entry = static_cast<int>(scales.byte(first + i / 2, i % 2)) - kLowestByte;
          tables[i / 2][i % 2] = far_tables[max(entry, 0)];
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * kStepsAtOnce; ++i) {
        const int step = first + i / 2, column = i % 2;
        const uint32_t word = packed.words[2 * step + column];
        const uint32_t selectors = word & 0x77777777u;
        a[step][2 * column] = apply(tables[i / 2][0], word, selectors);
        a[step][2 * column + 1] = apply(tables[i / 2][1], word << 4, selectors >> 16);
      }
    }
  }
};

}  // namespace w4afp8
