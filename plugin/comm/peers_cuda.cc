// SPDX-License-Identifier: Apache-2.0
// Outboxes in memory that the ranks share, meetings and notices by kernels, and the fetching.
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "plugin/comm/c10d_transport.h"
#include "plugin/comm/meet_cuda.h"
#include "plugin/comm/peers.h"
#include "plugin/comm/shared_memory_cuda.h"

namespace autoep::comm {
namespace {

constexpr int64_t kAlignment = 256;         // of a part in an outbox
constexpr int64_t kLeastOutbox = 16 << 20;  // bytes
constexpr int64_t kMostWanted = 1 << 30;    // bytes for rows of which most may not travel

int64_t RoundUp(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// The later, the more.
enum class Wish { kOff, kWait, kOn, kSteps };

Wish WishOf() {
  static constexpr std::string_view kWords[] = {"off", "wait", "on", "steps"};
  const char* wish = std::getenv("AUTOEP_PEERS");
  const std::string_view word = wish == nullptr ? "on" : wish;
  const auto* found = std::find(std::begin(kWords), std::end(kWords), word);
  TORCH_CHECK(found != std::end(kWords), "autoep: AUTOEP_PEERS is '", word, "': set it to on, to wait (nothing is computed while ",
              "rows travel), to steps (each rank's rows are computed by themselves while others travel), or to off");
  return static_cast<Wish>(found - std::begin(kWords));
}

// A name of this machine; 0 where the group's GPUs shall not be peers.
int64_t Machine(const c10d::ProcessGroup& group) {
  if (WishOf() == Wish::kOff) return 0;
  if (group.getSize() > cuda::kMostRanks) return 0;
  char name[256] = {};
  if (gethostname(name, sizeof(name) - 1) != 0) return 0;
  return static_cast<int64_t>(std::hash<std::string_view>()(name) | 1);
}

// Each exchange has an outbox of its own until the next but one.
class CudaPeers : public Communicator {
 public:
  CudaPeers(c10d::ProcessGroup& group, const at::Device& device, std::chrono::milliseconds timeout, SharedMemory meetings,
            Wish wish)
      : group_(group),
        device_(device),
        timeout_(timeout),
        meetings_(std::move(meetings)),
        wish_(wish),
        side_(c10::cuda::getStreamFromPool(/*isHighPriority=*/true, device.index())) {}

  int64_t rank() const override { return group_.getRank(); }
  int64_t size() const override { return group_.getSize(); }
  std::chrono::milliseconds timeout(c10::DeviceType) const override { return timeout_; }

  at::Tensor AllToAllCounts(const Message& message) override {
    const c10::cuda::CUDAGuard guard(device_);
    const at::Tensor each = message.each.contiguous();
    const at::Tensor all = message.all.defined() ? message.all.contiguous() : at::empty({0}, each.options());
    const auto numbers = static_cast<int64_t>(message.numbers.size());
    cuda::Words words{each.const_data_ptr<int64_t>(), all.const_data_ptr<int64_t>(), each.size(1), all.size(0), {}, numbers};
    if (numbers > cuda::kMostNumbers || words.Count() > cuda::kMostWords) return GroupCounts(group_, message.Whole());
    std::copy(message.numbers.begin(), message.numbers.end(), words.numbers);
    const Turn turn(*this);
    at::Tensor heard = at::empty({size(), words.Count()}, each.options());
    MeetAll(words, heard.mutable_data_ptr<int64_t>());
    return heard;
  }

  Outbox MakeOutbox(const Columns& parts, int64_t room, const at::Tensor& like) override {
    const c10::cuda::CUDAGuard guard(device_);
    const int64_t bytes = Bytes(WidthsOf(parts), room);
    const bool boxed = room > 0 && bytes <= capacity_;
    Outbox box{{}, boxed ? room : bytes <= kMostWanted ? -room : 0};
    const Turn turn(*this);
    if (boxed) {
      box.parts = Views(parts, room);
    } else {
      for (const auto& [columns, type] : parts) box.parts.push_back(at::empty({room, columns}, like.options().dtype(type)));
    }
    return box;
  }

  Outbox MakeOutbox(const Columns& parts, const Traffic& traffic, const at::Tensor&) override {
    const c10::cuda::CUDAGuard guard(device_);
    const Turn turn(*this);
    int64_t needed = 0;
    for (int64_t rank = 0; rank < size(); ++rank) needed = std::max(needed, Bytes(WidthsOf(parts), traffic.Sent(rank)));
    if (needed > capacity_ || !boxes_) Grow(needed);
    return {Views(parts, traffic.Sent(rank())), traffic.Sent(rank())};
  }

  std::vector<at::Tensor> AllToAllEach(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed& boxed) override {
    const c10::cuda::CUDAGuard guard(device_);
    std::vector<at::Tensor> received = Receivers(rows, traffic);
    Run(rows, received, traffic, boxed);
    return received;
  }

  std::unique_ptr<Arriving> StartEach(const std::vector<at::Tensor>& rows, const Traffic& traffic) override {
    const c10::cuda::CUDAGuard guard(device_);
    std::vector<at::Tensor> received = Receivers(rows, traffic);  // from the memory of the stream that will use them
    SideWaits();
    const c10::cuda::CUDAStream stream = wish_ == Wish::kWait ? c10::cuda::getCurrentCUDAStream(device_.index()) : side_;
    const c10::cuda::CUDAStreamGuard on(stream);
    Run(rows, received, traffic, {});
    return std::make_unique<Fetching>(stream, rows, std::move(received));
  }

  // Every rank takes the same steps, and nobody waits for all between them. Answers are written into the outbox that the next
  // exchange does not use, and whoever they are for is given notice. Nobody may still read the outbox: who did has done it before
  // the meeting that this trip began with. Nor may the rows' outbox be read when this returns: who fetched from it has answered,
  // and all answers were awaited. What is fetched of others' rows waits for no answer, and answers are awaited only after this rank
  // gave its own of the same steps, so that no rank waits in a circle, though all streams be one queue.
  std::optional<at::Tensor> RoundTrip(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Boxed& boxed,
                                      const Worker& worker) override {
    const c10::cuda::CUDAGuard guard(device_);
    const Widths widths = WidthsOf(rows);
    const int64_t width = worker.columns * static_cast<int64_t>(c10::elementSize(worker.type));
    const std::vector<Group> groups = GroupsFor(traffic, widths, width, worker.seconds);
    if (groups.empty()) return std::nullopt;
    const Turn turn(*this);
    int64_t most = 0;  // bytes of any rank's answers
    for (int64_t rank = 0; rank < size(); ++rank) most = std::max(most, traffic.Coming(rank) * width);
    const std::vector<int64_t> rooms = Deliver(rows, traffic, widths, boxed, most);
    const int64_t away = traffic.Away(rank()), own = traffic.Rows(rank(), rank());
    std::vector<at::Tensor> came, stayed;
    for (const at::Tensor& part : rows) {
      came.push_back(at::empty({traffic.Coming(rank()), part.size(1)}, part.options()));
      stayed.push_back(part.narrow(0, away, own));
    }
    const at::Tensor home = at::empty({away + own, worker.columns}, rows.back().options().dtype(worker.type));
    const at::Tensor answers = View(1 - box_, 0, traffic.Coming(rank()), worker.columns, worker.type);
    const Aside aside(*this);
    if (own > 0) worker.answer({rank()}, stayed, home.narrow(0, away, own));  // first, for the host takes long to launch it
    std::vector<c10::Event> there = FetchGroups(groups, came, traffic, widths, rooms);
    ++trip_;
    for (size_t i = 0; i < groups.size(); ++i) {
      there[i].block(c10::cuda::getCurrentCUDAStream(device_.index()));
      Answer(groups[i], came, traffic, worker, answers);
      TradeAnswers(groups[i], traffic, width, home);
    }
    return home;
  }

 private:
  using Widths = std::vector<int64_t>;  // bytes of a row of each part

  // The streams in which calls come wait for each other.
  class Turn {
   public:
    explicit Turn(CudaPeers& peers) : peers_(peers), stream_(c10::cuda::getCurrentCUDAStream(peers.device_.index())) {
      if (peers_.last_stream_ && *peers_.last_stream_ != stream_) peers_.last_.block(stream_);
    }
    ~Turn() {
      peers_.last_.record(stream_);
      peers_.last_stream_ = stream_;
    }

   private:
    CudaPeers& peers_;
    const c10::cuda::CUDAStream stream_;
  };

  // While it lives, the side stream works beside the current one.
  class Aside {
   public:
    explicit Aside(CudaPeers& peers) : peers_(peers) { peers_.SideWaits(); }
    ~Aside() { peers_.WaitForSide(); }

   private:
    CudaPeers& peers_;
  };

  class Fetching : public Arriving {
   public:
    Fetching(const c10::cuda::CUDAStream& side, std::vector<at::Tensor> sent, std::vector<at::Tensor> received)
        : device_(side.device_index()), sent_(std::move(sent)), received_(std::move(received)) {
      end_.record(side);
    }
    ~Fetching() override { end_.block(c10::cuda::getCurrentCUDAStream(device_)); }  // before the memory has another use
    std::vector<at::Tensor> Wait() override {
      end_.block(c10::cuda::getCurrentCUDAStream(device_));
      return received_;
    }

   private:
    const c10::DeviceIndex device_;
    const std::vector<at::Tensor> sent_;
    const std::vector<at::Tensor> received_;
    c10::Event end_{at::kCUDA};
  };

  static Widths WidthsOf(const std::vector<at::Tensor>& rows) {
    Widths widths;
    for (const at::Tensor& part : rows) widths.push_back(part.size(1) * part.element_size());
    return widths;
  }
  static Widths WidthsOf(const Columns& parts) {
    Widths widths;
    for (const auto& [columns, type] : parts) widths.push_back(columns * static_cast<int64_t>(c10::elementSize(type)));
    return widths;
  }
  static int64_t Begin(const Widths& widths, size_t part, int64_t room) {
    int64_t begin = 0;
    for (size_t i = 0; i < part; ++i) begin += RoundUp(widths[i] * room, kAlignment);
    return begin;
  }
  static int64_t Bytes(const Widths& widths, int64_t room) { return Begin(widths, widths.size(), room); }
  static char* Row(const at::Tensor& rows, int64_t row) {
    return static_cast<char*>(rows.data_ptr()) + row * rows.size(1) * rows.element_size();
  }

  cudaStream_t Stream() const { return c10::cuda::getCurrentCUDAStream(device_.index()); }

  // What the side stream does next comes after what the current stream was given.
  void SideWaits() {
    c10::Event now(at::kCUDA);
    now.record(c10::cuda::getCurrentCUDAStream(device_.index()));
    now.block(side_);
  }

  void WaitForSide() {
    c10::Event now(at::kCUDA);
    now.record(side_);
    now.block(c10::cuda::getCurrentCUDAStream(device_.index()));
  }

  at::Tensor View(int64_t box, int64_t begin, int64_t rows, int64_t columns, at::ScalarType type) const {
    const int64_t bytes = rows * columns * static_cast<int64_t>(c10::elementSize(type));
    return boxes_->own.narrow(0, box * capacity_ + begin, bytes).view(type).view({rows, columns});
  }

  std::vector<at::Tensor> Views(const Columns& parts, int64_t room) const {
    const Widths widths = WidthsOf(parts);
    std::vector<at::Tensor> views;
    for (size_t i = 0; i < parts.size(); ++i)
      views.push_back(View(box_, Begin(widths, i, room), room, parts[i].first, parts[i].second));
    return views;
  }

  void MeetAll() { MeetAll({}, nullptr); }
  void MeetAll(const cuda::Words& told, int64_t* heard) {
    const auto* memory = reinterpret_cast<int64_t* const*>(meetings_.all_ranks->get_buffer_ptrs_dev());
    const int64_t nanoseconds = std::chrono::nanoseconds(timeout_).count();
    cuda::Meet({memory, rank(), size(), ++number_, nanoseconds}, told, heard, kAbsent, Stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }

  std::vector<Group> GroupsFor(const Traffic& traffic, const Widths& there, int64_t back, const Seconds& seconds) const {
    if (wish_ == Wish::kWait || !traffic.Travels()) return {};
    if (wish_ == Wish::kSteps) return GroupSteps(size(), size() - 1);
    return BestGroups(traffic, std::accumulate(there.begin(), there.end(), int64_t{0}), back, seconds);
  }

  std::vector<at::Tensor> Receivers(const std::vector<at::Tensor>& rows, const Traffic& traffic) const {
    std::vector<at::Tensor> received;
    for (const at::Tensor& part : rows) received.push_back(at::empty({traffic.Received(rank()), part.size(1)}, part.options()));
    return received;
  }

  void Run(const std::vector<at::Tensor>& rows, const std::vector<at::Tensor>& received, const Traffic& traffic,
           const Boxed& boxed) {
    const Turn turn(*this);
    const Widths widths = WidthsOf(rows);
    const std::vector<int64_t> rooms = Deliver(rows, traffic, widths, boxed, 0);
    Fetch(received, traffic, widths, rooms);
    const int64_t own = traffic.Rows(rank(), rank());
    for (size_t part = 0; part < rows.size(); ++part) {
      received[part].narrow(0, traffic.Coming(rank()), own).copy_(rows[part].narrow(0, traffic.Away(rank()), own));
    }
    if (traffic.Travels()) box_ = 1 - box_;  // else nobody met, and the other outbox may still be read
  }

  // Puts the rows that travel into the outbox where they are not there, and meets unless that was done. An outbox has at least
  // `least` bytes then. Returns the ranks' rooms.
  std::vector<int64_t> Deliver(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Widths& widths,
                               const Boxed& boxed, int64_t least) {
    std::vector<int64_t> rooms(size());
    int64_t needed = least;
    bool all_boxed = least <= capacity_;
    for (int64_t rank = 0; rank < size(); ++rank) {
      const int64_t told = boxed.rooms.empty() ? 0 : boxed.rooms[rank];
      rooms[rank] = told > 0 ? told : traffic.Away(rank);
      if (told > 0 || traffic.Away(rank) == 0) continue;
      all_boxed = false;
      needed = std::max(needed, Bytes(widths, std::max(rooms[rank], -told)));
    }
    if (all_boxed) {
      if (!boxed.met && traffic.Travels()) MeetAll();
      return rooms;
    }
    if (needed > capacity_) {
      for (int64_t rank = 0; rank < size(); ++rank) rooms[rank] = traffic.Away(rank);
      for (const int64_t room : rooms) needed = std::max(needed, Bytes(widths, room));
      const std::optional<SharedMemory> old = Grow(needed);
      Put(rows, traffic, widths);
      C10_CUDA_CHECK(cudaStreamSynchronize(Stream()));  // rows may lie in the old ones
    } else if (boxed.rooms.empty() || boxed.rooms[rank()] <= 0) {
      Put(rows, traffic, widths);
    }
    MeetAll();
    return rooms;
  }

  void Put(const std::vector<at::Tensor>& rows, const Traffic& traffic, const Widths& widths) {
    const int64_t away = traffic.Away(rank());
    char* box = static_cast<char*>(boxes_->own.data_ptr()) + box_ * capacity_;
    for (size_t i = 0; i < rows.size(); ++i) Copy(box + Begin(widths, i, away), rows[i].contiguous().data_ptr(), away * widths[i]);
  }

  // The others' rows, from their outboxes, to the front of `to`.
  void Fetch(const std::vector<at::Tensor>& to, const Traffic& traffic, const Widths& widths,
             const std::vector<int64_t>& rooms) const {
    for (int64_t step = 1; step < size(); ++step) {
      const int64_t source = SourceAt(rank(), step, size());
      FetchFrom(source, to, traffic.ReceiveBegin(source, rank()), traffic, widths, rooms);
    }
  }

  // To the rows of `to` from `begin` on.
  void FetchFrom(int64_t source, const std::vector<at::Tensor>& to, int64_t begin, const Traffic& traffic, const Widths& widths,
                 const std::vector<int64_t>& rooms) const {
    const int64_t rows = traffic.Rows(source, rank());
    if (rows == 0) return;  // without any, there may be no outbox
    for (size_t part = 0; part < to.size(); ++part) {
      const char* box = boxes_->Of(source) + box_ * capacity_ + Begin(widths, part, rooms[source]);
      Copy(Row(to[part], begin), box + traffic.SendBegin(source, rank()) * widths[part], rows * widths[part]);
    }
  }

  // On the side stream, into the order of the steps. Events: each group is there.
  std::vector<c10::Event> FetchGroups(const std::vector<Group>& groups, const std::vector<at::Tensor>& to, const Traffic& traffic,
                                      const Widths& widths, const std::vector<int64_t>& rooms) const {
    const c10::cuda::CUDAStreamGuard on(side_);
    std::vector<c10::Event> there;
    for (const Group& group : groups) {
      for (int64_t step = group.begin; step < group.end; ++step) {
        FetchFrom(SourceAt(rank(), step, size()), to, StepBegin(traffic, rank(), step), traffic, widths, rooms);
      }
      there.emplace_back(at::kCUDA).record(side_);
    }
    return there;
  }

  void Answer(const Group& group, const std::vector<at::Tensor>& came, const Traffic& traffic, const Worker& worker,
              const at::Tensor& answers) const {
    const int64_t begin = StepBegin(traffic, rank(), group.begin), rows = StepBegin(traffic, rank(), group.end) - begin;
    if (rows == 0) return;
    std::vector<at::Tensor> parts;
    for (const at::Tensor& part : came) parts.push_back(part.narrow(0, begin, rows));
    worker.answer(SourcesOf(group, rank(), size()), parts, answers.narrow(0, begin, rows));
  }

  // Gives notice of this rank's answers of these steps; fetches, on the side stream, those that others made for it.
  void TradeAnswers(const Group& group, const Traffic& traffic, int64_t width, const at::Tensor& home) {
    uint64_t asked = 0, asking = 0;
    for (int64_t step = group.begin; step < group.end; ++step) {
      const int64_t source = SourceAt(rank(), step, size()), answerer = AnswererAt(rank(), step, size());
      if (traffic.Rows(source, rank()) > 0) asking |= uint64_t{1} << source;
      if (traffic.Rows(rank(), answerer) > 0) asked |= uint64_t{1} << answerer;
    }
    if (asking != 0) {
      cuda::Give(NoticeOf(asking), Stream());
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (asked == 0) return;
    SideWaits();  // the others need as long as this rank, and waiting takes a place on the device
    const c10::cuda::CUDAStreamGuard on(side_);
    cuda::Await(NoticeOf(asked), Stream());
    C10_CUDA_KERNEL_LAUNCH_CHECK();
    for (int64_t step = group.begin; step < group.end; ++step) {
      const int64_t answerer = AnswererAt(rank(), step, size());
      const char* box = boxes_->Of(answerer) + (1 - box_) * capacity_;
      Copy(Row(home, traffic.SendBegin(rank(), answerer)), box + StepBegin(traffic, answerer, step) * width,
           traffic.Rows(rank(), answerer) * width);
    }
  }

  cuda::Notice NoticeOf(uint64_t others) const {
    const auto* memory = reinterpret_cast<int64_t* const*>(meetings_.all_ranks->get_buffer_ptrs_dev());
    return {memory, rank(), size(), others, trip_, std::chrono::nanoseconds(timeout_).count()};
  }

  void Copy(void* to, const void* from, int64_t bytes) const {
    if (bytes > 0) C10_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, Stream()));
  }

  // Two outboxes of at least so many bytes; returns the ones before, from which rows may still be copied.
  std::optional<SharedMemory> Grow(int64_t bytes) {
    MeetAll();  // every rank has launched what reads the old ones,
    C10_CUDA_CHECK(cudaStreamSynchronize(Stream()));
    AllSayTrue(group_, device_, true);  // and has done it
    std::optional<SharedMemory> old = std::exchange(boxes_, std::nullopt);
    capacity_ = 0;
    const int64_t capacity = RoundUp(std::max(bytes, kLeastOutbox), kAlignment);
    boxes_ = MakeSharedMemory(group_, device_, 2 * capacity);
    TORCH_CHECK(boxes_, "autoep: ", 2 * capacity, " bytes of memory that the group's GPUs share could not be had on every rank: ",
                "free GPU memory, or set AUTOEP_PEERS=off on every rank");
    capacity_ = capacity;
    return old;
  }

  c10d::ProcessGroup& group_;
  const at::Device device_;
  const std::chrono::milliseconds timeout_;
  const SharedMemory meetings_;
  const Wish wish_;  // the same on every rank
  const c10::cuda::CUDAStream side_;
  std::optional<SharedMemory> boxes_;
  int64_t capacity_ = 0;  // bytes of each outbox
  int64_t box_ = 0;       // the one of the next exchange
  int64_t number_ = 0;    // of the last meeting
  int64_t trip_ = 0;      // of the last round trip
  c10::Event last_{at::kCUDA};
  std::optional<c10::Stream> last_stream_;
};

CommunicatorPtr MakeCudaPeers(c10d::ProcessGroup& group, const at::Device& device, std::chrono::milliseconds timeout) {
  const c10::cuda::CUDAGuard guard(device);
  const std::vector<int64_t> machines = AllSay(group, device, Machine(group));
  const bool together = std::all_of(machines.begin(), machines.end(), [&](int64_t one) { return one != 0 && one == machines[0]; });
  if (!together || group.getSize() == 1) return nullptr;
  std::optional<SharedMemory> meetings = MakeSharedMemory(group, device, cuda::kMeetingWords * sizeof(int64_t));
  if (!meetings) return nullptr;
  const std::vector<int64_t> wishes = AllSay(group, device, static_cast<int64_t>(WishOf()));
  const auto wish = static_cast<Wish>(*std::min_element(wishes.begin(), wishes.end()));
  return std::make_shared<CudaPeers>(group, device, timeout, std::move(*meetings), wish);
}

const bool registered = [] {
  RegisterPeers(&MakeCudaPeers);
  return true;
}();

}  // namespace
}  // namespace autoep::comm
