// Ranks of one stage: processes that compute its slices and meet in memory they share.
//
// The memory begins with a line for each rank: how often it came to a meeting. Behind them lie two
// areas a rank, which take turns: what was written before a meeting is read behind it, and nobody
// writes there again before all have come to the next one. So a meeting is one wait. A rank that
// never comes is not waited for here: whoever started the ranks ends them all.

#pragma once

#include "vectors.h"

#include <atomic>
#include <climits>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <sched.h>
#endif

namespace shunt {

class Ranks {
 public:
  const int64_t rank, size, area_bytes;

  static int64_t memory_bytes(int64_t size, int64_t area_bytes) {
    return size * (kLine + 2 * area_bytes);
  }

  Ranks(void* memory, int64_t rank, int64_t size, int64_t area_bytes)
      : rank(rank), size(size), area_bytes(area_bytes), memory_((char*)memory) {}

  // Where this rank writes before the next meeting.
  void* own() const { return area(rank); }

  // Waits until every rank has come as often; the areas as they were written before, rank by rank.
  const char* meet() {
    const char* met = area(0);
    const uint32_t now = ++came_;
    count(rank).store(now, std::memory_order_release);
    wake(count(rank));
    for (int64_t other = 0; other < size; other++)
      if (other != rank) wait_for(count(other), now);
    turn_ ^= 1;
    return met;
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int kGlances = 2000;  // some microseconds, before the core is given to others

  char* memory_;
  uint32_t came_ = 0;
  int64_t turn_ = 0;

  char* area(int64_t of) const {
    return memory_ + kLine * size + (turn_ * size + of) * area_bytes;
  }

  std::atomic<uint32_t>& count(int64_t of) const {
    return *(std::atomic<uint32_t>*)(memory_ + kLine * of);
  }

  static void wait_for(std::atomic<uint32_t>& count, uint32_t wanted) {
    for (int glance = 0;; glance++) {
      const uint32_t seen = count.load(std::memory_order_acquire);
      if ((int32_t)(seen - wanted) >= 0) return;
      if (glance < kGlances)
        pause();
      else
        sleep_while(count, seen);
    }
  }

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

#if defined(__linux__)
  static void sleep_while(std::atomic<uint32_t>& count, uint32_t seen) {
    syscall(SYS_futex, (uint32_t*)&count, FUTEX_WAIT, seen, nullptr, nullptr, 0);
  }
  static void wake(std::atomic<uint32_t>& count) {
    syscall(SYS_futex, (uint32_t*)&count, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
#else
  static void sleep_while(std::atomic<uint32_t>&, uint32_t) { sched_yield(); }
  static void wake(std::atomic<uint32_t>&) {}
#endif
};

static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));

// [rows, width] bytes of every rank as [rows][size][width], at every rank. A row fits an area.
inline void gather(Ranks& ranks, const char* mine, int64_t rows, int64_t width, char* all) {
  const int64_t most = ranks.area_bytes / width;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    std::memcpy(ranks.own(), mine + first * width, count * width);
    const char* met = ranks.meet();
    for (int64_t r = 0; r < count; r++)
      for (int64_t of = 0; of < ranks.size; of++)
        std::memcpy(all + ((first + r) * ranks.size + of) * width,
                    met + of * ranks.area_bytes + r * width, width);
  }
}

}  // namespace shunt
