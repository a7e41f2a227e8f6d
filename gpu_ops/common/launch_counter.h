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

// Counters in global memory, a set of them for each launch that needs one.
#pragma once

#include <cuda_runtime_api.h>
#ifdef __CUDACC__
#include <cuda/atomic>
#endif

#include <cstdint>

namespace w4afp8 {

// What the blocks of one launch count together.
struct alignas(64) LaunchCounters {
  static constexpr int kMostPaused = 120;

  uint32_t tickets;  // drawn, for tiles
  // Four bits for each tile: warpgroups whose sums wait for its other part.
  uint32_t paused[kMostPaused / 8];

#ifdef __CUDACC__
  // By all threads of a warpgroup, whose stores lie before a barrier of theirs.
  __device__ __forceinline__ void count_paused(int tile) {
    if (threadIdx.x % 128 != 0) return;
    word_of(tile).fetch_add(1u << tile % 8 * 4, cuda::memory_order_release);
  }
  // What these have stored is there then.
  __device__ __forceinline__ void wait_for_paused(int tile, uint32_t warpgroups) {
    while ((word_of(tile).load(cuda::memory_order_acquire) >> tile % 8 * 4 & 15) < warpgroups) {
    }
  }

 private:
  __device__ __forceinline__ cuda::atomic_ref<uint32_t, cuda::thread_scope_device> word_of(
      int tile) {
    return cuda::atomic_ref<uint32_t, cuda::thread_scope_device>(paused[tile / 8]);
  }
#endif
};

// Counters for one launch on `stream` of the current device: 0 when the launch begins, and put back to 0 by its
// end. nullptr where there are none.
//
// Launches that run at the same time have different ones. Eager ones take turns among 16384 of a process. A
// launch that is captured in a graph keeps its own for good, as the graph may be replayed beside anything else;
// after 262,144 of these on a device there are none left. A captured graph must not be replayed beside itself, by a second
// executable graph, which would also write the same output.
LaunchCounters* launch_counters(int device, cudaStream_t stream);

}  // namespace w4afp8
