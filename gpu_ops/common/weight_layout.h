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

// The packed weight, byte by byte. One definition for the CUDA packer, the CUDA GEMM's loads and the
// CPU kernels; docs/formats.md draws it.
//
// [experts][band of up to 256 outputs][k block of 128][sub-block of 64 outputs][4096 bytes, or 2048]
//
// A band keeps all tile heights (64, 128, 256 outputs) contiguous in memory for one k block, so that
// one bulk copy fetches a tile; the last band of an expert is as short as padded_out asks. Inside a
// sub-block, thread t of a warpgroup finds its wgmma A fragments for k steps 0-1 in the 16 bytes at
// 16 * t and for k steps 2-3 in the 16 bytes at 2048 + 16 * t. Such a 32-bit word holds 8 codes:
// output rows g and g + 8 ("half" 0 and 1), 4 neighbours along k each.
//
// A last k block of 64 in_features or fewer is half a one: its sub-blocks are their first 2048 bytes.
#pragma once

#include "common/types.h"

namespace w4afp8 {

constexpr int64_t kSubBlockOut = 64;      // outputs of one sub-block: the m of one wgmma
constexpr int64_t kSubBlockIn = 128;      // in_features of one k block
constexpr int64_t kSubBlockBytes = 4096;  // 64 x 128 codes
constexpr int64_t kHalfBlockIn = kSubBlockIn / 2;
constexpr int64_t kHalfBlockBytes = kSubBlockBytes / 2;
constexpr int64_t kBandOut = 256;  // outputs of one band

struct WeightLayout {
  int64_t out_features;
  int64_t in_features;

  W4AFP8_HOST_DEVICE int64_t padded_out() const { return round_up(out_features, kSubBlockOut); }
  W4AFP8_HOST_DEVICE int64_t padded_in() const { return round_up(in_features, kHalfBlockIn); }
  W4AFP8_HOST_DEVICE int64_t k_blocks() const { return ceil_div(in_features, kSubBlockIn); }
  W4AFP8_HOST_DEVICE int64_t expert_bytes() const { return padded_out() * padded_in() / 2; }

  // Whether a k block is half a one. `in_left`: in_features from its first one on.
  template <class Int>
  W4AFP8_HOST_DEVICE static bool is_half(Int in_left) {
    return in_left <= static_cast<Int>(kHalfBlockIn);
  }

  // Of a sub-block of this k block.
  W4AFP8_HOST_DEVICE int64_t sub_block_bytes(int64_t k_block) const {
    return is_half(in_features - k_block * kSubBlockIn) ? kHalfBlockBytes : kSubBlockBytes;
  }

  // Byte offset, inside one expert, of the sub-block with outputs [64 * sub, 64 * sub + 64) and
  // in_features [128 * k_block, 128 * k_block + 128).
  W4AFP8_HOST_DEVICE int64_t sub_block_offset(int64_t sub, int64_t k_block) const {
    const int64_t subs_per_band = kBandOut / kSubBlockOut;
    const int64_t band = sub / subs_per_band;
    const int64_t subs_left = padded_out() / kSubBlockOut - band * subs_per_band;
    const int64_t subs_here = subs_left < subs_per_band ? subs_left : subs_per_band;
    return band * kBandOut * padded_in() / 2 + k_block * subs_here * kSubBlockBytes +
           sub % subs_per_band * sub_block_bytes(k_block);
  }
};

// Place of one code inside a sub-block.
struct CodePlace {
  int32_t word;  // byte offset of its 32-bit little-endian word
  int32_t half;  // 0: output row g, 1: output row g + 8
  int32_t lane;  // 0..3 along k inside the word
};

W4AFP8_HOST_DEVICE CodePlace code_place(int32_t row, int32_t k) {
  const int32_t step = k / 32, column = k % 32;
  const int32_t warp = row / 16, half = row % 16 / 8, group = row % 8;
  const int32_t thread = warp * 32 + group * 4 + column % 16 / 4;
  const int32_t word = step % 2 * 2 + column / 16;
  return {step / 2 * 2048 + thread * 16 + word * 4, half, column % 4};
}

// The eight codes of a word, as the checkpoint spells them, to the word the GEMM reads, and back.
//
// int4: nibble of (half, lane) = byte `lane`, low nibble for half 0. The nibble is n << 1 | s with
// sign s and n = (q ^ -s) & 7, so that (w & 0x0E) + (w & 0x01) * 0x82 is the E4M3 byte of 2q * 2^-9.
//
// mxfp4: magnitude (3 bits) of (half, lane) at bit 16 * half + 4 * lane, a prmt selector; sign of
// half 0 at bit 8 * lane + 7, of half 1 at bit 8 * lane + 3.
W4AFP8_HOST_DEVICE uint32_t encode_code(WeightFormat format, uint32_t code, int32_t half,
                                        int32_t lane) {
  if (format == WeightFormat::kInt4) {
    const uint32_t sign = code >> 3 & 1;
    const uint32_t magnitude = (code ^ (sign ? 7u : 0u)) & 7;
    return (magnitude << 1 | sign) << (8 * lane + 4 * half);
  }
  return (code & 7) << (16 * half + 4 * lane) | (code >> 3 & 1) << (8 * lane + (half ? 3 : 7));
}

W4AFP8_HOST_DEVICE uint32_t decode_code(WeightFormat format, uint32_t word, int32_t half,
                                        int32_t lane) {
  if (format == WeightFormat::kInt4) {
    const uint32_t nibble = word >> (8 * lane + 4 * half) & 15;
    const uint32_t sign = nibble & 1;
    return sign << 3 | ((nibble >> 1 ^ (sign ? 7u : 0u)) & 7);
  }
  return (word >> (16 * half + 4 * lane) & 7) | (word >> (8 * lane + (half ? 3 : 7)) & 1) << 3;
}

}  // namespace w4afp8
