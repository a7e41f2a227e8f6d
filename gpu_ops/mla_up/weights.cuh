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

  template <bool kOneFactor>
  __device__ __forceinline__ void dequantise(MlaFragment (&a)[4]) const {
    using Numbers = MlaNumbers<kType>;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint2 powers = Numbers::template powers<kOneFactor>(scale_pair(step, j));
        a[step][j] = Numbers::multiply(Numbers::field(codes[step], j), powers.x);
        if constexpr (!kOneFactor) a[step][j] = Numbers::multiply(a[step][j], powers.y);
      }
    }
  }
};

// The largest bytes of words, those of odd and of even places apart: one comparison of two halves each,
// where bytes would take many. Each half's upper byte counts.
struct LargestBytes {
  uint32_t odd = 0, even = 0;

  __device__ __forceinline__ void add(uint32_t word) {
    odd = __vmaxu2(odd, word);
    even = __vmaxu2(even, word << 8);
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
    // Scales first: they are looked at while the codes are on their way.
#pragma unroll
    for (int block = 0; block < Tile::kOwnBlocks; ++block) {
      blocks_[block].load_scales(scales + block * kMlaBlockScaleBytes, thread);
    }
    if constexpr (kSeesOthers) {
      const uint8_t* all = scales - split * (Tile::kOwnBlocks * kMlaBlockScaleBytes);
#pragma unroll
      for (int i = 0; i < kShare; ++i) {
        others_[i].load_scales(all + (thread % 4 * kShare + i) * kMlaBlockScaleBytes, thread);
      }
    }
#pragma unroll
    for (int block = 0; block < Tile::kOwnBlocks; ++block) {
      blocks_[block].load_codes(codes + block * kMlaBlockBytes, thread);
    }
  }

  // Waits for the scales: call it as late as possible.
  __device__ __forceinline__ void look_at_scales() {
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
      one_factor_ = __all_sync(0xFFFFFFFFu, (any & 0x80808080u) == 0);
    }
  }

  __device__ __forceinline__ void dequantise(int block, MlaFragment (&a)[4]) const {
    if constexpr (Tile::kFloat8) {
      blocks_[block].template dequantise<false>(a);
    } else if (one_factor_) {
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
    const int shift = Tile::kFloat8 ? kMlaFloat8Shift : one_factor_ ? 1 : kMlaFloat16Shift;
    return ldexpf(1.0f, static_cast<int>(largest_ >> (8 * half) & 0xFF) - 127 - shift);
  }

 private:
  // FP16: scales become distances to the largest one of their output. Where none is more than 15, a
  // weight is one product, code * 2^(1 - d): halves, from 6 * 2 down to 0.5 * 2^-14. Else scales
  // become t = 37 - d, the number 2^(t - 24), or 0 more than 36 binades below.
  __device__ __forceinline__ void make_relative() {
    find_largest();
    uint32_t any = 0;
    const auto measure = [&](Block& block) {
#pragma unroll
      for (uint32_t& word : block.scales) {
        word = largest_ - word;  // four bytes; no byte of largest_ is the smaller one
        any |= word;
      }
    };
#pragma unroll
    for (Block& block : blocks_) measure(block);
    if constexpr (kSeesOthers) {  // so that all who share an output take one way
#pragma unroll
      for (Block& block : others_) measure(block);
    }
    one_factor_ = !Tile::kFloat8 && __all_sync(0xFFFFFFFFu, (any & 0xF0F0F0F0u) == 0);
    if (one_factor_) return;
#pragma unroll
    for (Block& block : blocks_) {
#pragma unroll
      for (uint32_t& word : block.scales) word = __vsubus4(0x25252525u, word);
    }
  }

  // The largest scale byte of this thread's rows: row g's in bytes 0 and 2, that of row g + 8 in bytes
  // 1 and 3. k_up: of the warp's group of 32 outputs, in all four.
  __device__ __forceinline__ void find_largest() {
    LargestBytes most;
    const auto add = [&](const Block& block) {
#pragma unroll
      for (const uint32_t word : block.scales) most.add(word);
    };
    if constexpr (kSeesOthers) {
#pragma unroll
      for (const Block& block : others_) add(block);
    } else {
#pragma unroll
      for (const Block& block : blocks_) add(block);
    }
    if constexpr (Tile::kOp == MlaUp::kKUp) {
      const uint32_t both = __vmaxu2(most.odd, most.even);
      largest_ = __reduce_max_sync(0xFFFFFFFFu, max(both >> 24, both >> 8 & 0xFF)) * 0x01010101u;
    } else {
      // Bytes 1 and 3: rows g and g + 8.
      uint32_t rows =
          __byte_perm(max(most.even, most.even << 16), max(most.odd, most.odd << 16), 0x7434);
      if constexpr (kSeesOthers) {
        rows = __vmaxu2(rows, __shfl_xor_sync(0xFFFFFFFFu, rows, 1));
        rows = __vmaxu2(rows, __shfl_xor_sync(0xFFFFFFFFu, rows, 2));
      }
      largest_ = __byte_perm(rows, 0, 0x3131);
    }
  }

  using Block = MlaBlock<Tile::kOp, kNumbers>;
  // FP16's largest scale is that of all inputs, of which a warpgroup may have a share only. The four
  // threads with the same rows look at a quarter of them each.
  static constexpr bool kSeesOthers = kIsRelative && Tile::kSplits > 1;
  static constexpr int kShare = kSeesOthers ? Tile::kInBlocks / 4 : 1;
  static_assert(!kSeesOthers || (Tile::kOp == MlaUp::kVUp && Tile::kInBlocks % 4 == 0),
                "a quad of threads has the scales of the same rows");

  Block blocks_[Tile::kOwnBlocks];
  Block others_[kShare];  // their scales alone
  bool one_factor_;       // see MlaNumbers::powers
  uint32_t largest_;      // FP16: see find_largest
};

}  // namespace w4afp8
