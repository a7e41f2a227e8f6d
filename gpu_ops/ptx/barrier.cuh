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

// Barriers. CuTe has these instructions too, but without a "memory" clobber, so the compiler may move
// an ordinary shared-memory load above its wait; ours must not be crossed.
#pragma once

#include <cstdint>

namespace w4afp8::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// Makes initialised barriers visible to the copy engine and to the other blocks of the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives at the barrier of the same name in block `rank` of the cluster.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint64_t* barrier, uint32_t rank) {
  asm volatile(
      "{\n\t"
      ".reg .b32 remote;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %1;\n\t"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n\t"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// One arrival that also announces `bytes` which the copy engine will deliver.
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}

// Blocks until the phase with this parity has completed.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n\t"
      ".reg .pred done;\n\t"
      "wait_%=:\n\t"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
      "@!done bra wait_%=;\n\t"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// Stores `value` at the place of the same name in block `rank` of the cluster, and then counts as 4 delivered
// bytes at its barrier of that name.
__device__ __forceinline__ void store_cluster(uint32_t* place, uint32_t value, uint64_t* barrier,
                                              uint32_t rank) {
  asm volatile(
      "{\n\t"
      ".reg .b32 remote, remote_barrier;\n\t"
      "mapa.shared::cluster.u32 remote, %0, %3;\n\t"
      "mapa.shared::cluster.u32 remote_barrier, %2, %3;\n\t"
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [remote], %1, "
      "[remote_barrier];\n\t"
      "}" ::"r"(shared_address(place)),
      "r"(value), "r"(shared_address(barrier)), "r"(rank)
      : "memory");
}

// Barrier among `threads` threads of the block. id 0 is __syncthreads.
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same; besides, whether `mine` is true for any of them.
__device__ __forceinline__ bool named_barrier_any(uint32_t id, uint32_t threads, bool mine) {
  uint32_t any;
  asm volatile(
      "{\n\t"
      ".reg .pred mine, any;\n\t"
      "setp.ne.u32 mine, %3, 0;\n\t"
      "barrier.cta.red.or.pred any, %1, %2, mine;\n\t"
      "selp.u32 %0, 1, 0, any;\n\t"
      "}"
      : "=r"(any)
      : "r"(id), "r"(threads), "r"(uint32_t{mine})
      : "memory");
  return any != 0;
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

}  // namespace w4afp8::ptx
