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

// Token tiles: [kTokens][64 inputs] for each block of inputs, in the 128-byte swizzle that wgmma
// reads, brought by asynchronous 16-byte copies from rows of any stride, or by tensor copies. Tokens
// past the last are zeros.
#pragma once

#include <type_traits>

#include "mla_up/tile.h"
#include "ptx/barrier.cuh"
#include "ptx/bulk_copy.cuh"

namespace w4afp8 {

// Zeros where `exists` is false.
__device__ __forceinline__ void copy_async(uint32_t shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending committed groups of this thread are still on their way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
// What this thread wrote to shared memory may be read by wgmma.
__device__ __forceinline__ void fence_for_wgmma() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Inputs of part `part` of the kTokens tokens from `first` on.
template <class Tile>
__device__ __forceinline__ void load_tokens(const MlaUpParams& params, uint32_t first, int part,
                                            uint32_t shared) {
  using Number = std::conditional_t<Tile::kFloat8, uint8_t, uint16_t>;
  constexpr uint32_t kNumbers = 16 / sizeof(Number);   // of a chunk
  constexpr uint32_t kChunks = Tile::kPartBytes / 16;  // in a row
  constexpr uint32_t kAll = Tile::kTokens * kChunks;
  const Number* x = static_cast<const Number*>(params.x) + blockIdx.y * params.x_head_stride +
                    first * params.x_token_stride + part * (kChunks * kNumbers);
  const uint32_t rows = static_cast<uint32_t>(params.tokens) - first;
#pragma unroll
  for (uint32_t i = 0; i < (kAll + Tile::kThreads - 1) / Tile::kThreads; ++i) {
    const uint32_t index = i * Tile::kThreads + threadIdx.x;
    if (kAll % Tile::kThreads != 0 && index >= kAll) break;
    const uint32_t row = index / kChunks, chunk = index % kChunks;
    copy_async(shared + chunk / 8 * (Tile::kTokens * 128) + row * 128 + ((chunk ^ row) % 8) * 16,
               x + row * params.x_token_stride + chunk * kNumbers, row < rows);
  }
}

// All inputs of the kTokens tokens from `first` on, by tensor copies: part p of every split arrives
// at barrier p. One thread calls this. Tokens past the last are zeros here too.
template <class Tile>
__device__ __forceinline__ void load_boxes(const CUtensorMap& map, uint32_t first, uint32_t shared,
                                           uint64_t* barriers) {
#pragma unroll
  for (int part = 0; part < Tile::kParts; ++part) {
    ptx::mbarrier_arrive_expect(&barriers[part], Tile::kSplits * Tile::kTokens * 128);
#pragma unroll
    for (int split = 0; split < Tile::kSplits; ++split) {
      const int block = split * Tile::kOwnBlocks + part;
      const ptx::TensorPlace place = {block * 64, static_cast<int32_t>(blockIdx.y),
                                      static_cast<int32_t>(first)};
      ptx::tensor_copy(shared + block * (Tile::kTokens * 128), &map, place, &barriers[part]);
    }
  }
}

// The scales of these tokens: float32, kTokens.
template <class Tile>
__device__ __forceinline__ void load_token_scales(const MlaUpParams& params, uint32_t first,
                                                  uint32_t shared) {
  static_assert(Tile::kTokens <= Tile::kThreads, "a thread loads one scale");
  if (threadIdx.x >= Tile::kTokens) return;
  const uint32_t token = first + threadIdx.x;
  const bool exists = token < params.tokens;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared + threadIdx.x * 4),
               "l"(params.x_scale + token * params.heads + blockIdx.y), "r"(exists ? 4 : 0)
               : "memory");
}

}  // namespace w4afp8
