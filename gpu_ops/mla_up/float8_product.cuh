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

// The same product by FP8 tensor cores: activations are E4M3 bytes as they came, weights are made E4M3
// fragments once and kept in registers for all tokens.
#pragma once

#include <cuda_fp16.h>

#include "grouped_gemm/wgmma.cuh"
#include "mla_up/product.cuh"

namespace w4afp8 {

// Two halves, of weights relative to the largest scale of their output (2^kMlaFloat16Shift), to E4M3,
// relative to 2^kMlaFloat8Shift. Exact where the scale is within 14 binades of the largest one, else
// rounded to E4M3's grid of 2^-9.
__device__ __forceinline__ uint32_t to_float8_pair(uint32_t halves) {
  constexpr uint32_t kFactor = (15u - (kMlaFloat16Shift - kMlaFloat8Shift)) << 10;  // 2^-7
  const uint32_t scaled = MlaNumbers<DataType::kFloat16>::multiply(halves, kFactor | kFactor << 16);
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(pair) : "r"(scaled));
  return pair;
}

// A thread's two pairs of a row and step of 16 inputs, 2c, 2c + 1 (low) and 2c + 8, 2c + 9, become its
// four neighbours 4c .. 4c + 3: wgmma's order of 8-bit operands. c is the thread in its quad; its
// neighbours are the low or the high pairs of two threads.
__device__ __forceinline__ uint32_t gather_neighbours(uint32_t pairs) {
  const uint32_t lane = threadIdx.x % 32, c = lane % 4;
  const uint32_t source = lane - c + 2 * c % 4;
  const uint32_t first = __shfl_sync(0xFFFFFFFFu, pairs, source);
  const uint32_t second = __shfl_sync(0xFFFFFFFFu, pairs, source + 1);
  return __byte_perm(first, second, c < 2 ? 0x5410 : 0x7632);
}

template <class Tile>
class MlaFloat8Product {
 public:
  using Sums = float[Tile::kTokens / 2];

  __device__ __forceinline__ void load(const MlaUpParams& params, uint32_t out, uint32_t split) {
    load_mla_weights<Tile>(params, out, split, &weights_);
  }

  __device__ __forceinline__ void look_at_scales() { weights_.look_at_scales(); }

  __device__ __forceinline__ void prepare() {
#pragma unroll
    for (int block = 0; block < Tile::kInBlocks; ++block) {
      MlaFragment halves[4];
      weights_.dequantise(block, halves);
#pragma unroll
      for (int step = 0; step < 4; ++step) {
#pragma unroll
        for (int row = 0; row < 2; ++row) {  // g and g + 8
          const uint32_t pairs =
              to_float8_pair(halves[step][row]) | to_float8_pair(halves[step][row + 2]) << 16;
          a_[block * 2 + step / 2][step % 2 * 2 + row] = gather_neighbours(pairs);
        }
      }
    }
  }

  // Multiplies the inputs of part `part`; `tokens` are those of its first line.
  template <int kPart>
  __device__ __forceinline__ void run(uint32_t tokens, Sums& sums) {
    constexpr int kSteps = Tile::kPartBytes / 32;
    const uint64_t descriptor = token_tile_descriptor(tokens);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      constexpr int kLine = Tile::kTokens * 128 / 16;
      wgmma<Tile::kTokens, E4M3>(sums, a_[kPart * kSteps + i],
                                 descriptor + i / 4 * kLine + i % 4 * 2, kPart > 0 || i > 0);
    }
    wgmma_commit();
    if constexpr (kPart > 0) wgmma_wait<1>();  // so the stage of the part before is free
  }

  __device__ __forceinline__ void finish(Sums& sums) {
    wgmma_wait<0>();
    keep_in_place(sums);
  }

  __device__ __forceinline__ const MlaWeights<Tile>& weights() const { return weights_; }

 private:
  MlaWeights<Tile> weights_;
  MlaFragment a_[Tile::kInBlocks * 2];
};

template <class Tile>
using MlaProductOf = std::conditional_t<Tile::kFloat8, MlaFloat8Product<Tile>, MlaProduct<Tile>>;

}  // namespace w4afp8
