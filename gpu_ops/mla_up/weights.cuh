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

// The packed weight from global memory to wgmma A fragments, through registers only. A thread's 16
// bytes of a 64 x 64 block are its fragments of four k steps (layout.h).
#pragma once

#include "mla_up/numbers.cuh"
#include "mla_up/tile.h"

namespace w4afp8 {

using MlaFragment = uint32_t[4];  // register j: row g + 8 * (j % 2), inputs 2c + 8 * (j / 2), + 1

// Read once, or by few blocks at the same time: kept out of L1.
__device__ __forceinline__ uint4 load_streamed(const uint4* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}
__device__ __forceinline__ uint32_t load_streamed(const uint32_t* address) {
  uint32_t v;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}

// Codes and scales of one 64 x 64 block, for one thread.
template <MlaUp kOp, DataType kType>
struct MlaBlock {
  static constexpr int kScaleWords = kOp == MlaUp::kKUp ? 4 : 1;
  uint32_t codes[4];
  uint32_t scales[kScaleWords];

  __device__ __forceinline__ void load_codes(const uint8_t* block, uint32_t thread) {
    const uint4 c = load_streamed(reinterpret_cast<const uint4*>(block) + thread);
    codes[0] = c.x, codes[1] = c.y, codes[2] = c.z, codes[3] = c.w;
  }

  __device__ __forceinline__ void load_scales(const uint8_t* block, uint32_t thread) {
    const uint32_t warp = thread / 32, lane = thread % 32;
    if constexpr (kOp == MlaUp::kKUp) {
      const uint4 s =
          load_streamed(reinterpret_cast<const uint4*>(block) + warp / 2 * 4 + lane % 4);
      scales[0] = s.x, scales[1] = s.y, scales[2] = s.z, scales[3] = s.w;
    } else {
      scales[0] = load_streamed(reinterpret_cast<const uint32_t*>(block) + warp * 8 + lane / 4);
    }
  }

  // The scales of register j's two numbers, in bytes 0 and 2.
  __device__ __forceinline__ uint32_t scale_pair(int step, int j) const {
    if constexpr (kOp == MlaUp::kKUp) {
      return __byte_perm(scales[step], 0, j / 2 == 0 ? 0x4240 : 0x4341);
    } else {
      const uint32_t byte = step / 2 * 2 + j % 2;
      return __byte_perm(scales[0], 0, 0x4040 + byte * 0x0101);
    }
  }

  // Largest of each byte of the scale words.
  __device__ __forceinline__ uint32_t largest() const {
    uint32_t most = scales[0];
#pragma unroll
    for (int i = 1; i < kScaleWords; ++i) most = __vmaxu4(most, scales[i]);
    return most;
  }

  template <bool kSmall>
  __device__ __forceinline__ void dequantise(MlaFragment (&a)[4]) const {
    using Numbers = MlaNumbers<kType>;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint2 powers = Numbers::template powers<kSmall>(scale_pair(step, j));
        a[step][j] = Numbers::multiply(Numbers::field(codes[step], j), powers.x);
        if constexpr (!kSmall) a[step][j] = Numbers::multiply(a[step][j], powers.y);
      }
    }
  }
};

// The weights of a warpgroup's 64 outputs over its inputs.
template <class Tile>
class MlaWeights {
 public:
  // Scales count relative to the largest one of their output, as float16's range asks for.
  static constexpr DataType kNumbers = Tile::kFloat8 ? DataType::kFloat16 : Tile::kType;
  static constexpr bool kIsRelative = kNumbers == DataType::kFloat16;

  // `codes` and `scales` are those of this warpgroup's inputs, the `split`-th share of all.
  __device__ __forceinline__ void load(const uint8_t* codes, const uint8_t* scales, uint32_t thread,
                                       uint32_t split) {
#pragma unroll
    for (int block = 0; block < Tile::kOwnBlocks; ++block) {
      blocks_[block].load_codes(codes + block * kMlaBlockBytes, thread);
      blocks_[block].load_scales(scales + block * kMlaBlockScaleBytes, thread);
    }
    if constexpr (kSeesOthers) {
      const uint8_t* all = scales - split * (Tile::kOwnBlocks * kMlaBlockScaleBytes);
#pragma unroll
      for (int block = 0; block < Tile::kInBlocks; ++block) {
        others_[block].load_scales(all + block * kMlaBlockScaleBytes, thread);
      }
    }
  }

  // Looks at the scales, which waits for them: call it as late as possible.
  __device__ __forceinline__ void prepare() {
    if constexpr (kIsRelative) {
      make_relative();
    } else {
      uint32_t any = 0;
#pragma unroll
      for (const auto& block : blocks_) {
#pragma unroll
        for (const uint32_t word : block.scales) any |= word;
      }
      // All of the warp take one way.
      is_small_ = __all_sync(0xFFFFFFFFu, (any & 0x80808080u) == 0);
    }
  }

  __device__ __forceinline__ void dequantise(int block, MlaFragment (&a)[4]) const {
    if constexpr (kIsRelative) {
      blocks_[block].template dequantise<false>(a);
    } else if (is_small_) {
      blocks_[block].template dequantise<true>(a);
    } else {
      blocks_[block].template dequantise<false>(a);
    }
  }

  // The compiler shall not see that fragments are the same for every token tile: kept in registers
  // from one to the next they would not fit.
  __device__ __forceinline__ void forget() {
#pragma unroll
    for (auto& block : blocks_) {
#pragma unroll
      for (uint32_t& word : block.codes) asm volatile("" : "+r"(word));
#pragma unroll
      for (uint32_t& word : block.scales) asm volatile("" : "+r"(word));
    }
  }

  // What the sums of row g (half 0) and g + 8 (half 1) are multiplied by.
  __device__ __forceinline__ float residual(int half) const {
    if constexpr (!kIsRelative) return 1.0f;
    constexpr int kBias = Tile::kFloat8 ? 127 + kMlaFloat8Shift : 127 + kMlaFloat16Shift;
    return ldexpf(1.0f, static_cast<int>(largest_ >> (8 * half) & 0xFF) - kBias);
  }

 private:
  // FP16: scales become t = s - largest + 37, the number 2^(t - 24), or 0 more than 36 binades below.
  __device__ __forceinline__ void make_relative() {
    uint32_t most = 0;
    if constexpr (kSeesOthers) {
#pragma unroll
      for (const Block& block : others_) most = __vmaxu4(most, block.largest());
    } else {
#pragma unroll
      for (const Block& block : blocks_) most = __vmaxu4(most, block.largest());
    }
    most = __vmaxu4(most, most >> 16);  // bytes 0 and 1: rows g and g + 8
    if constexpr (Tile::kOp == MlaUp::kKUp) {
      most = __vmaxu4(most, most >> 8);
      most = __vmaxu4(most, __shfl_xor_sync(0xFFFFFFFFu, most, 1));
      most = __vmaxu4(most, __shfl_xor_sync(0xFFFFFFFFu, most, 2));
      most = __byte_perm(most, 0, 0x0000);
    } else {
      most = __byte_perm(most, 0, 0x1010);
    }
    largest_ = most;
#pragma unroll
    for (Block& block : blocks_) {
#pragma unroll
      for (uint32_t& word : block.scales) word = __vsubus4(0x25252525u, __vsubus4(most, word));
    }
  }

  using Block = MlaBlock<Tile::kOp, kNumbers>;
  // FP16's largest scale is that of all inputs, of which a warpgroup may have a share only.
  static constexpr bool kSeesOthers = kIsRelative && Tile::kSplits > 1;

  Block blocks_[Tile::kOwnBlocks];
  Block others_[kSeesOthers ? Tile::kInBlocks : 1];  // their scales alone
  bool is_small_;                                    // BF16: all scales are below 128
  uint32_t largest_;  // FP16: scale byte: bytes 0 and 1 for rows g and g + 8
};

}  // namespace w4afp8
