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

// 64 outputs x kTokens tokens over all inputs: weights dequantised to A fragments in registers,
// tokens from shared memory, float32 sums.
#pragma once

#include "grouped_gemm/wgmma.cuh"
#include "mla_up/weights.cuh"
#include "ptx/bulk_copy.cuh"
#include "ptx/prefetch.cuh"

namespace w4afp8 {

template <DataType kType, int kTokens>
struct MlaAtom;
#define W4AFP8_MLA_ATOM(TYPE, NAME, TOKENS)                                               \
  template <>                                                                             \
  struct MlaAtom<DataType::TYPE, TOKENS>                                                  \
      : cute::SM90::GMMA::MMA_64x##TOKENS##x16_F32##NAME##_RS<cute::SM90::GMMA::Major::K, \
                                                              cute::SM90::GMMA::Major::K> {};
W4AFP8_MLA_ATOM(kBFloat16, BF16BF16, 16)
W4AFP8_MLA_ATOM(kBFloat16, BF16BF16, 32)
W4AFP8_MLA_ATOM(kBFloat16, BF16BF16, 64)
W4AFP8_MLA_ATOM(kBFloat16, BF16BF16, 128)
W4AFP8_MLA_ATOM(kFloat16, F16F16, 16)
W4AFP8_MLA_ATOM(kFloat16, F16F16, 32)
W4AFP8_MLA_ATOM(kFloat16, F16F16, 64)
W4AFP8_MLA_ATOM(kFloat16, F16F16, 128)
#undef W4AFP8_MLA_ATOM

// The four k steps of one block of 64 inputs; asynchronous.
template <class Tile, size_t... kIndex>
__device__ __forceinline__ void multiply_block(float (&sums)[Tile::kTokens / 2],
                                               const MlaFragment (&a)[4], uint64_t tokens,
                                               bool accumulate, std::index_sequence<kIndex...>) {
  using Scale = cute::SM90::GMMA::ScaleOut;
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    MlaAtom<Tile::kType, Tile::kTokens>::fma(a[step][0], a[step][1], a[step][2], a[step][3],
                                             tokens + 2 * step, sums[kIndex]...,
                                             accumulate || step > 0 ? Scale::One : Scale::Zero);
  }
}

// The first block of the weights of the outputs from `out` on and of this warpgroup's inputs. Past
// the last output those of the last block: a warpgroup with nothing to store takes part in everything
// else, as wgmmas on a divergent path would be serialised.
template <class Tile>
__device__ __forceinline__ uint32_t mla_weight_block(const MlaUpParams& params, uint32_t out,
                                                     uint32_t split) {
  const uint32_t out_blocks = static_cast<uint32_t>(params.out_features) / 64;
  return (blockIdx.y * out_blocks + min(out / 64, out_blocks - 1)) * Tile::kInBlocks +
         split * Tile::kOwnBlocks;
}

// Asks for them to be brought into L2. That is no access: what an earlier kernel still writes there
// is read later as it was written.
template <class Tile>
__device__ __forceinline__ void prefetch_mla_weights(const MlaUpParams& params, uint32_t out,
                                                     uint32_t split) {
  if (threadIdx.x % 128 != 0) return;
  const uint64_t block = mla_weight_block<Tile>(params, out, split);
  ptx::bulk_prefetch(params.weight + block * kMlaBlockBytes, Tile::kOwnBlocks * kMlaBlockBytes);
  ptx::bulk_prefetch(params.weight_scale + block * kMlaBlockScaleBytes,
                     Tile::kOwnBlocks * kMlaBlockScaleBytes);
}

// Asks for them.
template <class Tile>
__device__ __forceinline__ void load_mla_weights(const MlaUpParams& params, uint32_t out,
                                                 uint32_t split, MlaWeights<Tile>* weights) {
  const uint64_t block = mla_weight_block<Tile>(params, out, split);
  weights->load(params.weight + block * kMlaBlockBytes,
                params.weight_scale + block * kMlaBlockScaleBytes, threadIdx.x % 128, split);
}

template <class Tile>
class MlaProduct {
 public:
  using Sums = float[Tile::kTokens / 2];

  __device__ __forceinline__ void load(const MlaUpParams& params, uint32_t out, uint32_t split) {
    load_mla_weights<Tile>(params, out, split, &weights_);
  }

  // Of all products of a warpgroup, before prepare() waits for the codes of the first.
  __device__ __forceinline__ void look_at_scales() { weights_.look_at_scales(); }

  __device__ __forceinline__ void prepare() {
    constexpr int kReady = Tile::kResident ? Tile::kOwnBlocks : Tile::kOneTile ? 1 : 0;
#pragma unroll
    for (int i = 0; i < kReady; ++i) weights_.dequantise(i, a_[i]);
  }

  // Multiplies the inputs of part `part`, or where they are split this warpgroup's; `tokens` are
  // those of its first block. Where fragments are not resident, those of a block are made while the
  // tensor cores work on the block before.
  template <int kPart>
  __device__ __forceinline__ void run(uint32_t tokens, Sums& sums) {
    constexpr int kFirst = kPart * Tile::kPartBlocks;
    const uint64_t descriptor = token_tile_descriptor(tokens);
    if constexpr (!Tile::kResident && !Tile::kOneTile && kPart == 0) weights_.forget();
#pragma unroll
    for (int i = 0; i < Tile::kPartBlocks; ++i) {
      MlaFragment(&a)[4] = a_[(kFirst + i) % kBuffers];
      if constexpr (!Tile::kResident) {
        if (kFirst + i >= kBuffers) wgmma_wait<kBuffers - 1>();
        if (!Tile::kOneTile || kFirst + i > 0) weights_.dequantise(kFirst + i, a);
      }
      wgmma_fence();
      multiply_block<Tile>(sums, a, descriptor + i * (Tile::kTokens * 128 / 16), kFirst + i > 0,
                           std::make_index_sequence<Tile::kTokens / 2>{});
      wgmma_commit();
    }
  }

  __device__ __forceinline__ void finish(Sums& sums) {
    wgmma_wait<0>();
    keep_in_place(sums);
  }

  __device__ __forceinline__ const MlaWeights<Tile>& weights() const { return weights_; }

 private:
  static constexpr int kBuffers = Tile::kResident ? Tile::kOwnBlocks : Tile::kBuffers;
  MlaWeights<Tile> weights_;
  MlaFragment a_[kBuffers][4];
};

}  // namespace w4afp8
