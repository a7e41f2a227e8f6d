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

struct Int4PerChannel {
  static constexpr bool kPromotes = false;
  static constexpr int kScaleBytes = 0;
  static constexpr float kFactor = 256.0f;  // fragments hold 2q * 2^-9

  struct RowScales {
    __device__ __forceinline__ void load(const uint8_t*, int) {}
  };

  __device__ __forceinline__ static void dequantise(const PackedWords& packed, const RowScales&,
                                                    const uint2*, Fragment (&a)[kStepsPerBlock]) {
#pragma unroll
    for (int i = 0; i < 2 * kStepsPerBlock; ++i) {
      a[i / 2][i % 2 * 2] = int4_to_e4m3(packed.words[i]);
      a[i / 2][i % 2 * 2 + 1] = int4_to_e4m3(packed.words[i] >> 4);
    }
  }
};

// int4 with a scale per group of kStepsPerPromotion k steps (or a multiple): the products of a group
// are summed by the tensor cores, then promoted to float32 registers with the group's scale.
template <int kSteps>
struct Int4Grouped : Int4PerChannel {
  static constexpr bool kPromotes = true;
  static constexpr int kStepsPerPromotion = kSteps;
  static constexpr int kScaleRows = kStepsPerBlock / kSteps;  // groups of a k block, at most
  static constexpr int kScaleBytes = 4 * kScaleRows;          // room for float32
};

// MXFP4: E2M1 codes with their group's exponent folded in. A table of the E4M3 bytes of
// {0, .5, 1, 1.5, 2, 3, 4, 6} * 2^r, r = byte - 248 in -14 .. 6, serves as prmt's operand. Exact for
// r >= -8, which is a spread of 14 binades in a channel; below, rounded to the E4M3 grid of 2^-9.
struct Mxfp4 {
  static constexpr bool kPromotes = false;
  static constexpr int kScaleBytes = 4;  // one byte for each k step
  static constexpr float kFactor = 0x1p-6f;
  static constexpr int kTableEntries = 21;
  static constexpr int kLowestByte = 234;  // every smaller byte is all zeros too

  struct RowScales {
    uint32_t bytes[2];  // of rows g and g + 8

    __device__ __forceinline__ void load(const uint8_t* scales, int row) {
      bytes[0] = *reinterpret_cast<const uint32_t*>(scales + 4 * row);
      bytes[1] = *reinterpret_cast<const uint32_t*>(scales + 4 * (row + 8));
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

  __device__ __forceinline__ static uint32_t apply(uint2 table, uint32_t word_at_signs,
                                                   uint32_t selector) {
    return __byte_perm(table.x, table.y, selector & 0x7777u) | (word_at_signs & 0x80808080u);
  }

  // Table of a group within 6 binades of its channel's largest: the seven nonzero bytes of r = 0
  // plus 8 * r. No carry crosses a byte: 0x30 .. 0x4C + 48.
  __device__ __forceinline__ static uint2 near_table(uint32_t byte) {
    constexpr uint32_t kLow = 0x3C383000u - 248u * 0x08080800u;
    constexpr uint32_t kHigh = 0x4C484440u - 248u * 0x08080808u;
    return make_uint2(byte * 0x08080800u + kLow, byte * 0x08080808u + kHigh);
  }

  template <bool kNear>
  __device__ __forceinline__ static void expand(const PackedWords& packed, const RowScales& scales,
                                                const uint2* table, Fragment (&a)[kStepsPerBlock]) {
#pragma unroll
    for (int step = 0; step < kStepsPerBlock; ++step) {
      uint2 rows[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t byte = scales.bytes[half] >> (8 * step) & 0xFF;
        rows[half] = kNear ? near_table(byte) : table[max(static_cast<int>(byte) - kLowestByte, 0)];
      }
#pragma unroll
      for (int column = 0; column < 2; ++column) {
        const uint32_t word = packed.words[2 * step + column];
        a[step][2 * column] = apply(rows[0], word, word);
        a[step][2 * column + 1] = apply(rows[1], word << 4, word >> 16);
      }
    }
  }

  __device__ __forceinline__ static void dequantise(const PackedWords& packed,
                                                    const RowScales& scales, const uint2* table,
                                                    Fragment (&a)[kStepsPerBlock]) {
    constexpr uint32_t kAllNear = 0xF8F8F8F8u;  // every byte 248 or more
    if ((scales.bytes[0] & scales.bytes[1] & kAllNear) == kAllNear) {
      expand<true>(packed, scales, table, a);
    } else {
      expand<false>(packed, scales, table, a);
    }
  }
};

}  // namespace w4afp8
