// Puts the registers of a kernel, of which PTX has as many as it likes, into few cells: linear scan
// over the stretches in which their values are alive (Poletto and Sarkar, "Linear scan register
// allocation"; a lane that went another way has cells of its own). Without it a warp would need
// megabytes.
#include <algorithm>
#include <map>
#include <string_view>
#include <unordered_map>

#include "tests/emulator/ptx.h"

namespace fewbit::emulator {
namespace {

// The instructions from the first to the last at which a register's value may still be read.
struct Interval {
  uint32_t first = ~0u, last = 0;
  uint32_t place = 0;  // the new one

  void Include(uint32_t at) {
    first = std::min(first, at);
    last = std::max(last, at);
  }
};

// Opcodes whose first operand is not a result; the sums of wgmma.mma_async are read, too.
constexpr std::string_view kWithoutResult[] = {
    "st.",       "red.",           "stmatrix", "bar.sync",      "bar.arrive",         "bar.warp",
    "cp.async",  "prefetch",       "wgmma",    "mbarrier.init", "mbarrier.expect_tx", "setmaxnreg",
    "nanosleep", "mbarrier.arrive"};

// A set of registers, by their numbers.
class Registers {
 public:
  Registers() = default;
  explicit Registers(size_t count) : words_((count + 63) / 64) {}
  bool Has(uint32_t r) const { return (words_[r / 64] >> r % 64 & 1) != 0; }
  void Add(uint32_t r) { words_[r / 64] |= uint64_t{1} << r % 64; }
  std::vector<uint64_t>& words() { return words_; }

 private:
  std::vector<uint64_t> words_;
};

// Instructions `begin` to `end` - 1, entered at the first and left behind the last only.
struct Stretch {
  uint32_t begin = 0, end = 0;
  std::vector<uint32_t> next = {};  // stretches
  // Read before they are written; written before they are read; alive at begin and end.
  Registers reads = {}, writes = {}, alive_at_begin = {}, alive_at_end = {};
};

class Allocation {
 public:
  explicit Allocation(Kernel* kernel, const std::unordered_map<uint32_t, uint32_t>& cells)
      : kernel_(*kernel), cells_(cells) {
    for (const auto& [place, count] : cells_) {
      number_[place] = static_cast<uint32_t>(places_.size());
      places_.push_back(place);
    }
    intervals_.resize(places_.size());
    Divide();
    for (Stretch& stretch : stretches_) Summarize(&stretch);
    FindAlive();
    FindIntervals();
    Place();
    Rename();
  }

 private:
  // Calls f(number of the register, whether it is read, whether it gets a new value).
  template <typename F>
  void ForEachRegister(const Instruction& in, F f) const {
    const auto call = [&](uint32_t place, bool is_read, bool is_written) {
      if (const auto it = number_.find(place); it != number_.end()) {
        f(it->second, is_read, is_written);
      }
    };
    const std::string_view text = kernel_.statements[in.text].text;
    const bool has_result =
        std::none_of(std::begin(kWithoutResult), std::end(kWithoutResult),
                     [&](std::string_view prefix) { return text.starts_with(prefix); });
    // shfl may have a second one.
    const uint32_t results =
        has_result ? in.first_group + (text.starts_with("shfl") && in.operand_count == 6 ? 1u : 0u)
                   : 0u;
    if (in.guard >= 0) call(static_cast<uint32_t>(in.guard), true, false);
    for (uint32_t i = results; i < in.operand_count; ++i) {
      call(kernel_.operands[in.operands + i].place, true, false);
    }
    for (uint32_t i = 0; i < std::min<uint32_t>(results, in.operand_count); ++i) {
      // What is written under a condition may keep its value.
      call(kernel_.operands[in.operands + i].place, in.guard >= 0, true);
    }
  }

  void Divide() {
    const auto count = static_cast<uint32_t>(kernel_.code.size());
    std::vector<uint32_t> stretch_of(count);
    for (uint32_t at = 0; at < count; ++at) {
      const bool begins =
          at == 0 || kernel_.code[at].is_label || kernel_.code[at - 1].kind != Kind::kPlain;
      if (begins) stretches_.push_back({.begin = at, .end = at});
      stretches_.back().end = at + 1;
      stretch_of[at] = static_cast<uint32_t>(stretches_.size()) - 1;
    }
    for (uint32_t i = 0; i < stretches_.size(); ++i) {
      const Instruction& last = kernel_.code[stretches_[i].end - 1];
      if (last.kind == Kind::kBranch) stretches_[i].next.push_back(stretch_of[last.target]);
      if ((last.kind == Kind::kPlain || last.guard >= 0) && i + 1 < stretches_.size()) {
        stretches_[i].next.push_back(i + 1);
      }
    }
  }

  void Summarize(Stretch* stretch) const {
    stretch->reads = Registers(places_.size());
    stretch->writes = stretch->alive_at_begin = stretch->alive_at_end = stretch->reads;
    for (uint32_t at = stretch->begin; at < stretch->end; ++at) {
      ForEachRegister(kernel_.code[at], [&](uint32_t r, bool is_read, bool is_written) {
        if (is_read && !stretch->writes.Has(r)) stretch->reads.Add(r);
        if (is_written && !is_read && !stretch->reads.Has(r)) stretch->writes.Add(r);
      });
    }
  }

  // Backwards, until nothing changes.
  void FindAlive() {
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t i = stretches_.size(); i-- > 0;) {
        Stretch& stretch = stretches_[i];
        for (size_t w = 0; w < stretch.reads.words().size(); ++w) {
          uint64_t& at_end = stretch.alive_at_end.words()[w];
          for (const uint32_t next : stretch.next) {
            at_end |= stretches_[next].alive_at_begin.words()[w];
          }
          const uint64_t alive = stretch.reads.words()[w] | (at_end & ~stretch.writes.words()[w]);
          changed |= stretch.alive_at_begin.words()[w] != alive;
          stretch.alive_at_begin.words()[w] = alive;
        }
      }
    }
  }

  void FindIntervals() {
    for (const Stretch& stretch : stretches_) {
      for (uint32_t r = 0; r < places_.size(); ++r) {
        if (stretch.alive_at_begin.Has(r)) intervals_[r].Include(stretch.begin);
        if (stretch.alive_at_end.Has(r)) intervals_[r].Include(stretch.end - 1);
      }
      for (uint32_t at = stretch.begin; at < stretch.end; ++at) {
        ForEachRegister(kernel_.code[at],
                        [&](uint32_t r, bool, bool) { intervals_[r].Include(at); });
      }
    }
  }

  void Place() {
    std::vector<std::pair<uint32_t, Interval*>> by_begin;  // with the old places
    for (uint32_t r = 0; r < places_.size(); ++r) {
      if (intervals_[r].first <= intervals_[r].last) {
        by_begin.emplace_back(places_[r], &intervals_[r]);
      }
    }
    std::sort(by_begin.begin(), by_begin.end(), [](const auto& a, const auto& b) {
      return std::pair(a.second->first, a.first) < std::pair(b.second->first, b.first);
    });
    std::multimap<uint32_t, std::pair<uint32_t, uint32_t>> busy;  // by end: cells, place
    std::map<uint32_t, std::vector<uint32_t>> free;               // by cells
    for (auto& [old_place, interval] : by_begin) {
      while (!busy.empty() && busy.begin()->first < interval->first) {
        const auto [cells, place] = busy.begin()->second;
        free[cells].push_back(place);
        busy.erase(busy.begin());
      }
      const uint32_t cells = cells_.at(old_place);
      std::vector<uint32_t>& places = free[cells];
      if (places.empty()) {
        interval->place = next_;
        next_ += cells;
      } else {
        interval->place = places.back();
        places.pop_back();
      }
      busy.emplace(interval->last, std::pair(cells, interval->place));
    }
  }

  uint32_t NewPlace(uint32_t place) const {
    const auto it = number_.find(place);
    return it == number_.end() ? place : intervals_[it->second].place;
  }

  // Special registers and the place of what is thrown away are not in `cells_`; they come first.
  void Rename() {
    for (Instruction& in : kernel_.code) {
      if (in.guard >= 0) {
        in.guard = static_cast<int32_t>(NewPlace(static_cast<uint32_t>(in.guard)));
      }
    }
    std::unordered_map<uint32_t, uint32_t> moved;
    for (int64_t& place : kernel_.special_cells) {
      if (place < 0) continue;
      moved[static_cast<uint32_t>(place)] = next_;
      place = next_;
      next_ += kWarpLanes;
    }
    for (Operand& operand : kernel_.operands) {
      const auto it = moved.find(operand.place);
      operand.place = it == moved.end() ? NewPlace(operand.place) : it->second;
    }
    kernel_.register_cells = next_;
  }

  Kernel& kernel_;
  const std::unordered_map<uint32_t, uint32_t>& cells_;
  std::vector<uint32_t> places_;                   // old ones, by number of the register
  std::unordered_map<uint32_t, uint32_t> number_;  // by old place
  std::vector<Interval> intervals_;                // by number
  std::vector<Stretch> stretches_;
  uint32_t next_ = 2 * kWarpLanes;
};

}  // namespace

void AllocateRegisters(Kernel* kernel, const std::unordered_map<uint32_t, uint32_t>& cells) {
  Allocation{kernel, cells};
}

}  // namespace fewbit::emulator
