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

// Copies by the bulk copy engine, global to shared memory, completing on an mbarrier. Every operand
// (address, size) is a multiple of 16 bytes.
#pragma once

#include <cuda.h>

#include <cute/arch/copy_sm90_desc.hpp>

#include "ptx/barrier.cuh"

namespace w4afp8::ptx {

// How long a copied line should stay in L2.
using CachePolicy = cute::TMA::CacheHintSm90;

// `bytes` contiguous bytes. CuTe's form has no cache policy.
__device__ __forceinline__ void bulk_copy(void* destination, const void* source, uint32_t bytes,
                                          uint64_t* barrier, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1], %2, [%3], %4;" ::"r"(shared_address(destination)),
      "l"(source), "r"(bytes), "r"(shared_address(barrier)), "l"(static_cast<uint64_t>(policy))
      : "memory");
}

// The first element of a box of a three-dimensional tensor map, the contiguous dimension first.
using TensorPlace = int32_t[3];

// One box, to an address in the shared state space; what lies outside the tensor arrives as zeros. The box must not lie
// outside altogether: at the end of memory that was an illegal access (kernel-log.md, run 114).
__device__ __forceinline__ void tensor_copy(uint32_t destination, const CUtensorMap* map,
                                            const TensorPlace& place, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(destination),
      "l"(map), "r"(place[0]), "r"(place[1]), "r"(place[2]), "r"(shared_address(barrier))
      : "memory");
}

__device__ __forceinline__ void tensor_copy(uint32_t destination, const CUtensorMap* map,
                                            const TensorPlace& place, uint64_t* barrier,
                                            CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(destination),
      "l"(map), "r"(place[0]), "r"(place[1]), "r"(place[2]), "r"(shared_address(barrier)),
      "l"(static_cast<uint64_t>(policy))
      : "memory");
}

// The same into the same place of every block of the cluster named by `blocks`, each completing on its own
// barrier.
__device__ __forceinline__ void tensor_copy_multicast(uint32_t destination, const CUtensorMap* map,
                                                      const TensorPlace& place, uint64_t* barrier,
                                                      uint16_t blocks, CachePolicy policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6, %7;" ::"r"(
          destination),
      "l"(map), "r"(place[0]), "r"(place[1]), "r"(place[2]), "r"(shared_address(barrier)),
      "h"(blocks), "l"(static_cast<uint64_t>(policy))
      : "memory");
}

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace w4afp8::ptx
