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

// One m64 x N x k32 product of the FP8 tensor cores: A (weights) from registers, B (tokens) from
// shared memory, float32 accumulators. CuTe has the instruction, one function a shape with N / 2
// references; here it takes the arrays.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

namespace w4afp8 {

template <int kTokens>
struct WgmmaAtom;
template <>
struct WgmmaAtom<16> : cute::SM90::GMMA::MMA_64x16x32_F32E4M3E4M3_RS_TN<> {};
template <>
struct WgmmaAtom<64> : cute::SM90::GMMA::MMA_64x64x32_F32E4M3E4M3_RS_TN<> {};
template <>
struct WgmmaAtom<128> : cute::SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_RS_TN<> {};
template <>
struct WgmmaAtom<256> : cute::SM90::GMMA::MMA_64x256x32_F32E4M3E4M3_RS_TN<> {};

template <int kTokens, int kCount, size_t... kIndex>
__device__ __forceinline__ void wgmma(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate, std::index_sequence<kIndex...>) {
  WgmmaAtom<kTokens>::fma(
      a[0], a[1], a[2], a[3], b, d[kIndex]...,
      accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}

// d (+)= a * b in the first kTokens / 2 accumulators of this thread; they are overwritten where
// `accumulate` is false. Asynchronous: see wgmma_wait.
template <int kTokens, int kCount>
__device__ __forceinline__ void wgmma(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate) {
  wgmma<kTokens, kCount>(d, a, b, accumulate, std::make_index_sequence<kTokens / 2>{});
}

// Orders register writes before the wgmmas that follow.
__device__ __forceinline__ void wgmma_fence() { cute::warpgroup_arrive(); }
__device__ __forceinline__ void wgmma_commit() { cute::warpgroup_commit_batch(); }
// Waits until at most kPending committed groups are still running.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  cute::warpgroup_wait<kPending>();
}

// Keeps the compiler from moving reads or writes of accumulators across a wait.
template <int kCount>
__device__ __forceinline__ void keep_in_place(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) cute::warpgroup_fence_operand(d[i]);
}

// Shared-memory descriptor of a [tokens][128 bytes] tile in the 128-byte swizzle: rows of 8 tokens
// are 1024 bytes apart. A k32 step further is 32 bytes, 2 in the units of the descriptor.
__device__ __forceinline__ uint64_t token_tile_descriptor(uint32_t shared_address) {
  constexpr uint64_t kSwizzle128 = 1ull << 62;
  constexpr uint64_t kStride = (1024ull >> 4) << 32;
  constexpr uint64_t kLeadingUnused = 1ull << 16;
  return kSwizzle128 | kStride | kLeadingUnused | ((shared_address & 0x3FFFF) >> 4);
}

}  // namespace w4afp8
