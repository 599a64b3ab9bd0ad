// SPDX-License-Identifier: Apache-2.0
// Parser of debug records: ("FORMAT_WITH_STRING_TABLE", strings, ((offset, (source, start, end), tag), ...)), where a source
// is (indices of its strings, index of its file name, first line).
#include "passes/model/debug_ranges.h"

#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

namespace autoep {
namespace {

using torch::jit::Source;
using torch::jit::SourceRange;

class DebugRanges : public torch::jit::SourceRangeUnpickler {
 public:
  explicit DebugRanges(std::string record) : record_(std::move(record)) {}

  std::optional<SourceRange> findSourceRangeThatGenerated(const SourceRange& range) override {
    std::call_once(parsed_, [&] { Parse(); });
    auto next = std::upper_bound(ranges_.begin(), ranges_.end(), range.start(),
                                 [](size_t offset, const auto& entry) { return offset < entry.first; });
    if (next == ranges_.begin()) return std::nullopt;
    return std::prev(next)->second;
  }

 private:
  void Parse() {
    try {
      ParseRecord();
    } catch (const std::exception&) {
      ranges_.clear();  // only names of lines are lost
    }
    record_ = {};
  }

  void ParseRecord() {
    const auto record = torch::jit::unpickle(record_.data(), record_.size()).toTuple();
    const auto& parts = record->elements();
    TORCH_CHECK(parts.size() == 3 && parts[0].isString() && parts[0].toStringRef() == torch::jit::kFormatWithStringTable);
    for (const at::IValue& text : parts[1].toTupleRef().elements())
      texts_.push_back(std::make_shared<std::string>(text.toStringRef()));
    for (const at::IValue& line : parts[2].toTupleRef().elements()) {
      const auto& entry = line.toTupleRef().elements();
      const auto& range = entry.at(torch::jit::kSourceRangeIndex).toTupleRef().elements();
      ranges_.emplace_back(entry.at(torch::jit::kByteOffsetIndex).toInt(),
                           SourceRange(MakeSource(range.at(0).toTuple()), range.at(1).toInt(), range.at(2).toInt()));
    }
  }

  std::shared_ptr<Source> MakeSource(const c10::intrusive_ptr<c10::ivalue::Tuple>& tuple) {
    std::shared_ptr<Source>& source = sources_[tuple.get()];
    if (source) return source;
    const auto& parts = tuple->elements();
    std::vector<std::string_view> views;
    std::vector<std::shared_ptr<std::string>> owners;
    for (int64_t index : parts.at(0).toIntList()) {
      owners.push_back(texts_.at(index));
      views.emplace_back(*owners.back());
    }
    kept_.push_back(tuple);
    source = std::make_shared<Source>(torch::jit::StringCordView(std::move(views), std::move(owners)),
                                      *texts_.at(parts.at(1).toInt()), parts.at(2).toInt());
    return source;
  }

  std::string record_;
  std::once_flag parsed_;
  std::vector<std::shared_ptr<std::string>> texts_;
  std::map<const void*, std::shared_ptr<Source>> sources_;
  std::vector<c10::intrusive_ptr<c10::ivalue::Tuple>> kept_;  // so that no address in sources_ is used twice
  std::vector<std::pair<size_t, SourceRange>> ranges_;        // by offset, as the writer wrote them
};

}  // namespace

std::shared_ptr<torch::jit::SourceRangeUnpickler> MakeDebugRanges(std::string record) {
  return std::make_shared<DebugRanges>(std::move(record));
}

}  // namespace autoep
