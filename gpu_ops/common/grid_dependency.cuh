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

// Overlap of a kernel's start with the end of the one before it in the stream (programmatic dependent
// launch), device side; launch_dependent_kernel is the host side.
//
// The rule that makes it safe: every thread calls wait_for_previous_grids() before its first access
// to global memory, reads and writes alike. So a kernel ends only after the one before it, and
// nothing is read or overwritten too early, whatever ran before. launch_dependents() may then come
// anywhere: the next kernel's blocks start once all of this one's have called it, and wait in their
// turn. Right behind the wait, so that no more than two kernels are on the device at a time: where it
// comes first, blocks of many waiting kernels crowd, and short kernels one behind the other each take
// longer. A kernel may call it first where the one behind it needs whole multiprocessors: its blocks crowd nobody.
// Asking for data to be brought into L2 is no access: L2 sees every write, so what is read later is
// right.
//
// The exception: a kernel whose caller knows what runs before it may touch memory earlier (moe_ffn.cc, moe_experts.cc).
// That its blocks run says that all blocks of the kernel before have triggered or left. Where all of these wait before
// either, all that came before it has ended; where they trigger at once, they run, which says the same of the one before
// it. What has ended wrote may then be read, and what only that used be written. A kernel must still end after the one
// before it: one of its blocks at least waits. L1 may have what was there earlier: such reads go past it.
#pragma once

#include <cuda_runtime.h>

#include <cuda/atomic>

namespace w4afp8 {

// A large grid does so only as it ends, without being told: blocks that start earlier crowd on the
// multiprocessors that have room first, and the kernel behind takes longer.
__device__ __forceinline__ void launch_dependents() {
  constexpr unsigned kFewBlocks = 264;  // two for each multiprocessor of the largest Hopper GPU
  if (gridDim.x <= kFewBlocks) cudaTriggerProgrammaticLaunchCompletion();
}

// The same for any grid, where the next kernel's blocks need most of a multiprocessor and so cannot
// crowd: they start as multiprocessors become free, not after the last block.
__device__ __forceinline__ void launch_large_dependents() {
  cudaTriggerProgrammaticLaunchCompletion();
}

// Until every earlier kernel of the stream has ended and what it wrote can be read.
__device__ __forceinline__ void wait_for_previous_grids() { cudaGridDependencySynchronize(); }

// A word that a kernel writes while the next one may already be asking for it.
template <class T>
__device__ __forceinline__ T load_relaxed(const T* word) {
  return cuda::atomic_ref<T, cuda::thread_scope_device>(*const_cast<T*>(word))
      .load(cuda::memory_order_relaxed);
}
template <class T>
__device__ __forceinline__ void store_relaxed(T* word, T value) {
  cuda::atomic_ref<T, cuda::thread_scope_device>(*word).store(value, cuda::memory_order_relaxed);
}

}  // namespace w4afp8
