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

// Packed 4-bit weights of multi-head latent attention's two up projections, byte by byte. One
// definition for the CUDA kernels, the CPU kernels and the packer; docs/mla.md draws it. Host-safe.
//
// A weight is, for each head, a matrix [out_features, in_features] of E2M1 codes, both multiples of
// 64. W_K: outputs are lora, inputs nope. W_V: outputs are v, inputs lora. The E8M0 scales are those
// of the checkpoint, one for 32 neighbours along lora: of W_K along its outputs, of W_V along its
// inputs.
//
//   codes   [heads][out block of 64][in block of 64][2048 bytes]
//   scales  [heads][out block of 64][in block of 64][128 bytes]
//
// Thread t of a warpgroup finds its A fragments of a 64 x 64 block in the 16 bytes at 16 * t: word s
// (little endian, 32 bits) holds the eight codes of k step s (16 inputs). There is no padding and no
// copy between global memory and these registers.
#pragma once

#include "common/types.h"

namespace w4afp8 {

// Which of the two products, and so along which axis the groups of 32 lie.
enum class MlaUp : int32_t {
  kKUp,  // q_nope [tokens, heads, nope] -> [tokens, heads, lora]: groups along the outputs
  kVUp,  // x [tokens, heads, lora] -> [tokens, heads, v]: groups along the inputs
};

constexpr int64_t kMlaBlock = 64;             // outputs and inputs of one block
constexpr int64_t kMlaGroup = 32;             // codes that share a scale
constexpr int64_t kMlaBlockBytes = 2048;      // codes of a block
constexpr int64_t kMlaBlockScaleBytes = 128;  // scales of a block
constexpr int32_t kMlaLargestScale = 252;     // E8M0; 6 * 2^(253 - 127) is more than bfloat16 holds

// Where scales are relative: the power of two that the largest one of an output becomes. 6 times it
// is below 65504 (float16) and 448 (E4M3).
constexpr int32_t kMlaFloat16Shift = 13;
constexpr int32_t kMlaFloat8Shift = 6;

struct MlaUpLayout {
  MlaUp op;
  int64_t out_features;
  int64_t in_features;

  W4AFP8_HOST_DEVICE int64_t in_blocks() const { return in_features / kMlaBlock; }
  W4AFP8_HOST_DEVICE int64_t head_blocks() const { return out_features / kMlaBlock * in_blocks(); }
  W4AFP8_HOST_DEVICE int64_t head_bytes() const { return head_blocks() * kMlaBlockBytes; }
  W4AFP8_HOST_DEVICE int64_t head_scale_bytes() const {
    return head_blocks() * kMlaBlockScaleBytes;
  }

  // Inside a head: the block that holds weight [out, in].
  W4AFP8_HOST_DEVICE int64_t block(int64_t out, int64_t in) const {
    return out / kMlaBlock * in_blocks() + in / kMlaBlock;
  }

  // Byte, inside a head's scales, of the scale of weight [out, in].
  //
  // k_up: for each group of 32 outputs and each column pair c the 16 bytes that a thread needs, four
  // a k step: columns 2c, 2c + 8, 2c + 1, 2c + 9, so that a mask of bytes 0 and 2 gives a pair.
  // v_up: for each output row g of a warp's 16 (with its neighbour g + 8) four bytes: row g and row
  // g + 8 of the first group of 32 inputs, then of the second.
  W4AFP8_HOST_DEVICE int64_t scale_byte(int64_t out, int64_t in) const {
    const int64_t row = out % kMlaBlock, column = in % kMlaBlock;
    const int64_t begin = block(out, in) * kMlaBlockScaleBytes;
    if (op == MlaUp::kKUp) {
      const int64_t k = column % 16;
      return begin + row / kMlaGroup * 64 + k % 8 / 2 * 16 + column / 16 * 4 + k % 2 * 2 + k / 8;
    }
    return begin + (row / 16 * 8 + row % 8) * 4 + column / kMlaGroup * 2 + row % 16 / 8;
  }
};

// Place of one code inside a 64 x 64 block: the register layout of a wgmma A operand (m64, k16,
// 16-bit).
struct MlaCodePlace {
  int32_t word;      // byte offset of its 32-bit little-endian word
  int32_t half;      // which of two neighbouring inputs: half word 0 or 1
  int32_t fragment;  // register of the A operand: row + 8 * (fragment % 2), input + 8 * (.. / 2)
};

W4AFP8_HOST_DEVICE MlaCodePlace mla_code_place(int32_t row, int32_t column) {
  const int32_t k = column % 16;
  const int32_t thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
  return {thread * 16 + column / 16 * 4, k % 2, k / 8 * 2 + row % 16 / 8};
}

// A half word holds four codes: the magnitude (eem) of `fragment` at bit 6, 3, 0, 9 and its sign at
// bit 15, 12, 14, 13. Shifted by 0, 3, 6 and -3 the magnitude is at bits 8 .. 6, where it is the
// bfloat16 number magnitude * 2^-126; two of the signs come along.
W4AFP8_HOST_DEVICE int32_t mla_magnitude_bit(int32_t fragment) {
  return fragment == 3 ? 9 : 6 - 3 * fragment;
}
W4AFP8_HOST_DEVICE int32_t mla_sign_bit(int32_t fragment) {
  return fragment == 0 ? 15 : fragment == 1 ? 12 : 16 - fragment;
}

W4AFP8_HOST_DEVICE uint32_t encode_mla_code(uint32_t code, int32_t half, int32_t fragment) {
  return ((code & 7) << mla_magnitude_bit(fragment) | (code >> 3 & 1) << mla_sign_bit(fragment))
         << (16 * half);
}

W4AFP8_HOST_DEVICE uint32_t decode_mla_code(uint32_t word, int32_t half, int32_t fragment) {
  const uint32_t bits = word >> (16 * half);
  return (bits >> mla_magnitude_bit(fragment) & 7) | (bits >> mla_sign_bit(fragment) & 1) << 3;
}

}  // namespace w4afp8
