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
// shared memory, accumulators in float32 or in halves, two a register. CuTe has the instruction, one
// function a shape with a reference for each register; here it takes the arrays.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <cute/arch/mma_sm90_gmma_ext.hpp>  // 72, 80, 112, 160 and 224 tokens
#include <type_traits>
#include <utility>

namespace w4afp8 {

// Of the A operand; B is always E4M3.
struct E4M3 {};
struct E5M2 {};

template <int kTokens, class T, class Element>
struct WgmmaAtom;
#define W4AFP8_WGMMA_ATOM(tokens, element)                                    \
  template <>                                                                 \
  struct WgmmaAtom<tokens, float, element>                                    \
      : cute::SM90::GMMA::MMA_64x##tokens##x32_F32##element##E4M3_RS_TN<> {}; \
  template <>                                                                 \
  struct WgmmaAtom<tokens, uint32_t, element>                                 \
      : cute::SM90::GMMA::MMA_64x##tokens##x32_F16##element##E4M3_RS_TN<> {}
#define W4AFP8_WGMMA_ATOMS(tokens) \
  W4AFP8_WGMMA_ATOM(tokens, E4M3); \
  W4AFP8_WGMMA_ATOM(tokens, E5M2)
W4AFP8_WGMMA_ATOMS(16);
W4AFP8_WGMMA_ATOMS(32);
W4AFP8_WGMMA_ATOMS(64);
W4AFP8_WGMMA_ATOMS(72);
W4AFP8_WGMMA_ATOMS(80);
W4AFP8_WGMMA_ATOMS(96);
W4AFP8_WGMMA_ATOMS(112);
W4AFP8_WGMMA_ATOMS(128);
W4AFP8_WGMMA_ATOMS(160);
W4AFP8_WGMMA_ATOMS(192);
W4AFP8_WGMMA_ATOMS(224);
W4AFP8_WGMMA_ATOMS(256);
#undef W4AFP8_WGMMA_ATOMS
#undef W4AFP8_WGMMA_ATOM

template <int kTokens, class Element, class T, int kCount, size_t... kIndex>
__device__ __forceinline__ void wgmma(T (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate, std::index_sequence<kIndex...>) {
  WgmmaAtom<kTokens, T, Element>::fma(
      a[0], a[1], a[2], a[3], b, d[kIndex]...,
      accumulate ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}

// d (+)= a * b in the first accumulators of this thread, kTokens / 2 float32 or kTokens / 4 pairs of
// halves; they are overwritten where `accumulate` is false. Asynchronous: see wgmma_wait.
template <int kTokens, class Element, class T, int kCount>
__device__ __forceinline__ void wgmma(T (&d)[kCount], const uint32_t (&a)[4], uint64_t b,
                                      bool accumulate) {
  constexpr int kRegisters = kTokens / (std::is_same_v<T, float> ? 2 : 4);
  wgmma<kTokens, Element>(d, a, b, accumulate, std::make_index_sequence<kRegisters>{});
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
template <class T, int kCount>
__device__ __forceinline__ void keep_in_place(T (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) cute::warpgroup_fence_operand(d[i]);
}

// Shared-memory descriptor of a [tokens][128 bytes] tile in the 128-byte swizzle: rows of 8 tokens
// are 1024 bytes apart. Its low word says where the tile is, in steps of 16 bytes: a k32 step further is 2 more.
__device__ __forceinline__ uint32_t token_tile_place(uint32_t shared_address) {
  constexpr uint32_t kLeadingUnused = 1u << 16;
  return kLeadingUnused | ((shared_address & 0x3FFFF) >> 4);
}
__device__ __forceinline__ uint64_t token_tile_at(uint32_t place) {
  constexpr uint64_t kSwizzle128 = 1ull << 62;
  constexpr uint64_t kStride = (1024ull >> 4) << 32;
  return kSwizzle128 | kStride | place;
}
__device__ __forceinline__ uint64_t token_tile_descriptor(uint32_t shared_address) {
  return token_tile_at(token_tile_place(shared_address));
}

}  // namespace w4afp8
