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

// Persistent tile scheduler: the producers' warps read the token counts on the device, so any skew works and nothing is
// copied to the host, and count what there is of each expert; one of them makes the plan (tile_plan.h), and finds this
// block's first tiles. Nothing else runs in the block meanwhile, so every instruction counts here. Later ones are found by
// a thread of the same warp, which the producers ask. Tiles that are taken, not dealt out, go by tickets from
// a counter in global memory; in a cluster the first block takes them and tells the others.
#pragma once

#include <cuda_pipeline.h>

#include <cub/warp/warp_scan.cuh>

#include "common/grid_dependency.cuh"
#include "common/launch_counter.h"
#include "grouped_gemm/storage.cuh"
#include "grouped_gemm/tile_plan.h"

namespace w4afp8 {

template <class Tile>
class TileScheduler {
 public:
  using Plan = TilePlan<Tile>;
  static constexpr int kLanes = 32;
  static_assert(Plan::kMostPaused == LaunchCounters::kMostPaused &&
                Tile::kConsumers * Tile::kCluster < 16);
  static_assert(kListedTiles == kLanes && kListedTiles > Tile::kStages);
  static constexpr int kWarps = 4;  // of the producers' warpgroup
  static_assert(Tile::kThreads == Tile::kConsumerThreads + kWarps * kLanes);
  // What a warp tells the others.
  struct Found {
    int heavy, light;       // token tiles
    uint32_t widths;        // of the heavy ones, a bit for each
    uint32_t most_work;     // of a cluster
    uint32_t tall_experts;  // if so many experts have tall tiles
  };
  struct alignas(8) Shared {
    Found found[kWarps];
    Plan plan;
    typename Plan::Sequence sequence;  // of this cluster
    uint32_t listed;                   // tiles of it that are listed from the start
  };
  static constexpr int64_t words(int64_t experts) {
    return ExpertTables::words(experts) + sizeof(Shared) / sizeof(int32_t);
  }

  // `storage`: words(experts) int32 in shared memory, aligned to 8 bytes. `tiles`: kListedTiles of them. `counters`:
  // nullptr where no tiles are taken.
  __device__ TileScheduler(int32_t* storage, TileCoordinates* tiles, TileDesk<Tile>& desk,
                           TicketMail<Tile>& mail, LaunchCounters* counters)
      : shared_(*reinterpret_cast<Shared*>(storage)),
        storage_(storage + sizeof(Shared) / sizeof(int32_t)),
        tiles_(tiles),
        desk_(desk),
        mail_(mail),
        counters_(counters) {}

  // Makes the plan from the counts, and finds the first tiles, one in each lane of the first warp. `start`: see
  // GroupGemmParams. `plan`: without counts. For all threads of the producers' warpgroup.
  template <int kHeightStep>
  __device__ void build(const TokenLayout& layout, Start start, Plan plan) {
    const ExpertTables tables = ExpertTables::at(storage_, plan.experts);
    if (plan.experts <= kLanes) {
      if (warp() == 0) count<Warp, kHeightStep>(layout, start, plan, tables);
    } else {
      count<Warpgroup, kHeightStep>(layout, start, plan, tables);
    }
    if (warp() > 0) return;
    plan.finish(tables);
    const auto sequence = plan.sequence(blockIdx.x / Tile::kCluster);
    list(plan, tables, lane(), plan.place_of(sequence, lane()));
    if (lane() == 0) {
      shared_.plan = plan;
      shared_.sequence = sequence;
      shared_.listed = min(plan.length(sequence), kListedTiles);
    }
    __syncwarp();
    if (lane() == 0) ptx::mbarrier_arrive(&desk_.answered);
  }

  // For threads of other warps than the one that builds it.
  __device__ __forceinline__ void wait_for_plan() const { ptx::mbarrier_wait(&desk_.answered, 0); }

  // For a producer: has the next tile listed. Once before the first tile, and once for each tile that it has.
  __device__ __forceinline__ void ask() const {
    if (next_ >= shared_.listed) ptx::mbarrier_arrive(&desk_.asked);
  }

  // The next tile of this block (of this cluster), for a producer that has asked; nullptr when there is none.
  __device__ __forceinline__ const TileCoordinates* next() {
    while (true) {
      const uint32_t found = next_ - shared_.listed;
      if (next_ >= shared_.listed) ptx::mbarrier_wait(&desk_.answered, (found + 1) % 2);
      const TileCoordinates* const tile = &tiles_[next_++ % kListedTiles];
      if (tile->expert < 0) return nullptr;
      if (!Tile::kSplits || tile->num_tokens > 0) return tile;
      ask();  // it is half of a tile whose other half has all tokens
    }
  }

  // Lists tiles as the producers ask for them, until there is none; a thread of the warp that made the plan.
  __device__ __forceinline__ void serve() {
    uint32_t i = shared_.listed;
    for (int place = 0; place >= 0; ++i) {
      ptx::mbarrier_wait(&desk_.asked, (i - shared_.listed) % 2);
      place = shared_.plan.place_of(shared_.sequence, i);
      if (place < 0) place = take();
      list(shared_.plan, ExpertTables::at(storage_, shared_.plan.experts), i, place);
      ptx::mbarrier_arrive(&desk_.answered);
    }
  }

 private:
  __device__ static int lane() { return threadIdx.x % kLanes; }
  __device__ static int thread() { return static_cast<int>(threadIdx.x) - Tile::kConsumerThreads; }
  __device__ static int warp() { return thread() / kLanes; }

  // The threads that count: one warp where it has a lane for each expert, else four, which have fewer experts each but
  // wait for each other.
  struct Warp {
    static constexpr int kThreads = kLanes;
    __device__ __forceinline__ static void sync() { __syncwarp(); }
    __device__ __forceinline__ static bool any(bool mine) { return __any_sync(~0u, mine); }
  };
  struct Warpgroup {
    static constexpr int kThreads = kWarps * kLanes;
    static constexpr uint32_t kBarrier = 1 + Tile::kConsumers;  // consumers have those before
    __device__ __forceinline__ static void sync() {
      __syncwarp();
      ptx::named_barrier_sync(kBarrier, kThreads);
    }
    __device__ __forceinline__ static bool any(bool mine) {
      return ptx::named_barrier_any(kBarrier, kThreads, mine);
    }
  };

  template <class Team>
  static constexpr bool kIsOneWarp = Team::kThreads == kLanes;

  // Counts the tokens, and settles the heights.
  template <class Team, int kHeightStep>
  __device__ void count(const TokenLayout& layout, Start start, Plan& plan,
                        const ExpertTables& tables) const {
    count_tokens<Team>(fetch<Team>(layout, start, tables.room()), plan, tables);
    if (plan.may_lower_last()) {
      lower_last_tiles<Team>(plan, tables);
    } else {
      plan.template lower<kHeightStep>(tables);
    }
  }

  // The same layout over a copy of the counts in shared memory, all of which is on its way at once.
  template <class Team>
  __device__ static TokenLayout fetch(TokenLayout layout, Start start, void* room) {
    const int entries =
        static_cast<int>(layout.experts) + (layout.padding == 0 && layout.leading_zero ? 1 : 0);
    if (layout.is_int64) {
      copy<Team>(static_cast<int64_t*>(room), static_cast<const int64_t*>(layout.tokens), entries,
                 start);
    } else {
      copy<Team>(static_cast<int32_t*>(room), static_cast<const int32_t*>(layout.tokens), entries,
                 start);
    }
    __pipeline_commit();
    __pipeline_wait_prior(0);
    Team::sync();
    layout.tokens = room;
    return layout;
  }
  template <class Team, class T>
  __device__ static void copy(T* room, const T* entries, int count, Start start) {
    if (start != Start::kBehind) return read_early<Team>(room, entries, count, start);
#pragma unroll 1
    for (int i = thread(); i < count; i += Team::kThreads) {
      __pipeline_memcpy_async(room + i, entries + i, sizeof(T));
    }
  }

  // Past L1, which may have what was there before. Where tokens are awaited, each entry as soon as it is not negative.
  template <class Team, class T>
  __device__ static void read_early(T* room, const T* entries, int count, Start start) {
    const bool waits = start == Start::kAwaitingTokens;
    constexpr int kAtOnce = 4;
    const auto place = [&](int i) { return min(thread() + i * Team::kThreads, count - 1); };
#pragma unroll 1
    for (int first = 0; first * Team::kThreads < count; first += kAtOnce) {
      T found[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) found[i] = load_relaxed(entries + place(first + i));
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        while (waits && found[i] < 0) found[i] = load_relaxed(entries + place(first + i));
        room[place(first + i)] = found[i];
      }
    }
  }

  // Fills the tables and the numbers of token tiles. Each thread has some neighbouring experts.
  template <class Team>
  __device__ __forceinline__ void count_tokens(const TokenLayout& tokens, Plan& plan,
                                               const ExpertTables& tables) const {
    const int each = kIsOneWarp<Team> ? 1 : (plan.experts + Team::kThreads - 1) / Team::kThreads;
    const int begin = min(thread() * each, plan.experts), end = min(begin + each, plan.experts);
    Found own = {};  // of this thread's experts, then of all up to them
    int lone = 0;    // tiles that are light or heavy, as others have several or not
    plan.choose_light(false);
#pragma unroll 1
    for (int expert = begin; expert < end; ++expert) {
      const ShortRows rows = tokens.short_rows_of(expert);
      tables.row_begin[expert] = rows.begin;
      tables.count[expert] = rows.count;
      const bool is_heavy = plan.is_heavy(rows.count);
      const int tiles = Plan::token_tiles(rows.count);
      (!is_heavy ? own.light : Plan::kLoneIsLight && tiles == 1 ? lone : own.heavy) += tiles;
      if constexpr (Tile::kIsWide) own.widths |= is_heavy ? plan.widths_of(rows.count) : 0;
    }
    if constexpr (Plan::kLoneIsLight) {
      plan.choose_light(Team::any(own.heavy > 0));
      (plan.is_heavy(Tile::kTokens) ? own.heavy : own.light) += lone;
    }
    const Found all = add_up<Team>(own);
    plan.heavy.token_tiles = all.heavy;
    plan.light.token_tiles = all.light;
    plan.is_uneven = __popc(all.widths) > 1;
    // All have read `tokens`, whose place the ends take.
#pragma unroll 1
    for (int expert = end - 1; expert >= begin; --expert) {
      tables.heavy_end[expert] = own.heavy;
      tables.light_end[expert] = own.light;
      const int count = tables.count[expert];
      (plan.is_heavy(count) ? own.heavy : own.light) -= Plan::token_tiles(count);
    }
    Team::sync();
  }

  // Adds to `own` what the threads before have found; returns what all have. Waits for all of them. Narrow tiles are heavy,
  // of one width.
  template <class Team>
  __device__ __forceinline__ Found add_up(Found& own) const {
    Found all = {};
    running_sum(own.heavy, all.heavy);
    if constexpr (Tile::kIsWide) {
      running_sum(own.light, all.light);
      all.widths = __reduce_or_sync(~0u, own.widths);
    }
    if (!kIsOneWarp<Team> && lane() == 0) shared_.found[warp()] = all;
    Team::sync();
    if (kIsOneWarp<Team>) return all;
    all = {};
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      const Found found = shared_.found[i];
      if (i < warp()) own.heavy += found.heavy, own.light += found.light;
      all.heavy += found.heavy;
      if constexpr (Tile::kIsWide) all.light += found.light, all.widths |= found.widths;
    }
    return all;
  }
  __device__ __forceinline__ static void running_sum(int& number, int& total) {
    using Scan = cub::WarpScan<int>;
    typename Scan::TempStorage unused;  // a warp's scan needs none
    Scan(unused).InclusiveSum(number, number, total);
  }

  // Gives the later experts low tiles where the cluster with the most work then has less: as many as
  // possible tall ones. Each thread tries some numbers of experts with tall tiles.
  template <class Team>
  __device__ __forceinline__ void lower_last_tiles(Plan& plan, const ExpertTables& tables) const {
    unsigned least = ~0u, tall_experts = 0;
#pragma unroll 1
    for (int experts = thread(); experts <= plan.experts; experts += Team::kThreads) {
      const int tall_token_tiles = experts > 0 ? tables.heavy_end[experts - 1] : 0;
      const unsigned work = plan.most_work(tall_token_tiles);
      if (work <= least) least = work, tall_experts = experts;
    }
    const unsigned least_of_all = __reduce_min_sync(~0u, least);
    tall_experts = __reduce_max_sync(~0u, least == least_of_all ? tall_experts : 0);
    plan.tall_experts = tall_experts;
    if (kIsOneWarp<Team>) return;
    if (lane() == 0) {
      shared_.found[warp()].most_work = least_of_all;
      shared_.found[warp()].tall_experts = tall_experts;
    }
    Team::sync();
    if (warp() > 0) return;
    const Found found = shared_.found[lane() % kWarps];
    least = __reduce_min_sync(~0u, found.most_work);
    plan.tall_experts = __reduce_max_sync(~0u, found.most_work == least ? found.tall_experts : 0);
  }

  // As the i-th of this block.
  __device__ __forceinline__ void list(const Plan& plan, const ExpertTables& tables, uint32_t i,
                                       int place) {
    TileCoordinates& tile = tiles_[i % kListedTiles];
    if (place >= 0) {
      tile = plan.locate(tables, place);
    } else {
      tile.expert = -1;
    }
  }

  // Each block that asks anything of the counters draws one ticket in vain, the last thing that it asks, as all before was
  // answered. The last one puts them back.
  __device__ __forceinline__ uint32_t draw(const Plan& plan) const {
    constexpr int kBlocks = Tile::kMayPause ? Tile::kCluster : 1;  // of a cluster
    const uint32_t ticket = atomicAdd(&counters_->tickets, 1);
    if (ticket + 1 >= plan.taken() + kBlocks * plan.clusters.value) *counters_ = {};
    return ticket;
  }

  // The place of the next of the tiles that are taken, or -1. The kernel before may still run: the counters are of this
  // launch alone.
  __device__ __forceinline__ int take() {
    const Plan& plan = shared_.plan;
    const uint32_t tiles = plan.taken();
    if (tiles == 0) return -1;
    uint32_t ticket;
    if (Tile::kCluster == 1 || blockIdx.x % Tile::kCluster == 0) {
      ticket = draw(plan);
      mail_.send(taken_, ticket);
    } else {
      ticket = mail_.receive(taken_);
      // The first block may be ahead of the last part that this one has waited for.
      if (Tile::kMayPause && ticket >= tiles) draw(plan);
    }
    ++taken_;
    const int place = plan.taken_place(static_cast<int>(ticket));
    // First parts were taken before, by blocks that run, so this ends.
    if (plan.is_last_part(place)) {
      counters_->wait_for_paused(place - plan.all(), Tile::kConsumers * Tile::kCluster);
    }
    return place;
  }

  Shared& shared_;
  int32_t* const storage_;
  TileCoordinates* const tiles_;
  TileDesk<Tile>& desk_;
  TicketMail<Tile>& mail_;
  LaunchCounters* const counters_;
  uint32_t next_ = 0;
  int taken_ = 0;
};

}  // namespace w4afp8
