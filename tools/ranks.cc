// SPDX-License-Identifier: Apache-2.0
// Starts the processes, listens to their stderr, and ends them all when one fails or time is up.
#include "tools/ranks.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <thread>

#include "plugin/io/files.h"
#include "plugin/io/output.h"
#include "plugin/io/text.h"
#include "tools/interrupt.h"

namespace autoep {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kKeptText = 64 << 10;
constexpr uint64_t kMaxSentence = 1 << 20;

std::string JobPath(const TempFolder& folder, size_t index) { return folder.File(fmt::format("job-{}.json", index)); }

// Processes that end with this object, and on an interrupt.
class Children {
 public:
  Children() : on_interrupt_([this] { KillAll(); }) {}
  ~Children() { KillAll(); }

  void Add(pid_t pid) {
    const std::lock_guard lock(mutex_);
    running_.push_back(pid);
  }

  // The wait status of a process that has ended or is about to.
  int Wait(pid_t pid) {
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    const std::lock_guard lock(mutex_);
    running_.erase(std::remove(running_.begin(), running_.end(), pid), running_.end());
    return status;
  }

  void KillAll() {
    const std::lock_guard lock(mutex_);
    for (const pid_t pid : running_) kill(pid, SIGKILL);
    for (const pid_t pid : running_) {
      while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
    running_.clear();
  }

 private:
  std::mutex mutex_;
  std::vector<pid_t> running_;
  OnInterrupt on_interrupt_;
};

struct Process {
  pid_t pid = -1;
  int text = -1;  // read end of its stdout and stderr; end of file means that it has ended
  std::string tail;

  ~Process() {
    if (text >= 0) close(text);
  }
};

// In the child, between fork and exec: only calls that are safe there.
[[noreturn]] void Exec(const std::vector<char*>& arguments, const std::vector<char*>& environment, int text, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  setpgid(0, 0);  // a Ctrl-C at the terminal reaches the parent, which ends its children
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(text, STDOUT_FILENO);
  dup2(text, STDERR_FILENO);
  execve(arguments[0], arguments.data(), environment.data());
  _exit(127);
}

std::vector<std::string> Environment(size_t processes) {
  const size_t cores = std::max(1u, std::thread::hardware_concurrency());
  std::vector<std::string> environment;
  for (char** entry = environ; *entry; ++entry) {
    const std::string_view text(*entry);
    if (text.rfind("OMP_NUM_THREADS=", 0) != 0 && text.rfind("MKL_NUM_THREADS=", 0) != 0) environment.emplace_back(text);
  }
  const size_t threads = std::max<size_t>(1, cores / processes);
  environment.push_back(fmt::format("OMP_NUM_THREADS={}", threads));
  environment.push_back(fmt::format("MKL_NUM_THREADS={}", threads));
  return environment;
}

std::vector<char*> Pointers(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

Status Start(const std::string& program, const std::string& job_path, size_t processes, Children* children, Process* process) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return Status(Code::kVerify, fmt::format("a process could not be started: {}", strerror(errno)));
  std::vector<std::string> words = {program, "_rank", job_path};
  std::vector<std::string> environment = Environment(processes);
  const std::vector<char*> argument_pointers = Pointers(words);
  const std::vector<char*> environment_pointers = Pointers(environment);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) Exec(argument_pointers, environment_pointers, ends[1], parent);
  close(ends[1]);
  process->text = ends[0];
  if (pid < 0) return Status(Code::kVerify, fmt::format("a process could not be started: {}", strerror(errno)));
  process->pid = pid;
  children->Add(pid);
  return Status();
}

// Reads what there is; false at the end of the file.
bool Drain(Process* process) {
  char buffer[4096];
  const ssize_t count = read(process->text, buffer, sizeof(buffer));
  if (count < 0) return errno == EINTR || errno == EAGAIN;
  if (count == 0) return false;
  process->tail.append(buffer, count);
  if (process->tail.size() > 2 * kKeptText) process->tail.erase(0, process->tail.size() - kKeptText);
  return true;
}

std::string LastLine(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.substr(text.rfind('\n') + 1);
}

std::string Who(const RankJob& job) { return job.directory.empty() ? "the source model" : fmt::format("rank {}", job.rank); }

// What the process left in its failure file; else what can be said from outside.
Status Failure(const RankJob& job, const std::string& job_path, int wait_status, const Process& process) {
  const auto text = ReadTextFile(RankFailurePath(job_path), kMaxSentence);
  if (text.ok()) {
    const size_t end = text->find('\n');
    const int code = std::atoi(text->substr(0, end).c_str());
    return Status(static_cast<Code>(code), end == std::string::npos ? "" : text->substr(end + 1)).At(Who(job));
  }
  std::string how = WIFSIGNALED(wait_status)
                        ? fmt::format("was ended by signal {} ({})", WTERMSIG(wait_status), strsignal(WTERMSIG(wait_status)))
                        : fmt::format("ended with exit code {}", WEXITSTATUS(wait_status));
  const std::string line = LastLine(process.tail);
  if (!line.empty()) how += "; the last it said: " + Printable(line);
  return Status(Code::kVerify, fmt::format("the process of {} {}", Who(job), how));
}

// A process that failed. One that left no sentence was struck from outside, and the others then lost it: it comes first.
struct Ended {
  size_t job;
  int wait_status;
  std::filesystem::file_time_type failure_written;
  bool operator<(const Ended& other) const { return failure_written < other.failure_written; }
};

std::filesystem::file_time_type WrittenAt(const std::string& path) {
  std::error_code missing;
  const auto time = std::filesystem::last_write_time(path, missing);
  return missing ? std::filesystem::file_time_type::min() : time;
}

Status WaitForAll(const std::vector<RankJob>& jobs, const TempFolder& folder, Clock::time_point deadline, int64_t timeout_s,
                  std::vector<Process>* processes, Children* children) {
  std::vector<size_t> open;
  for (size_t i = 0; i < jobs.size(); ++i) open.push_back(i);
  while (!open.empty()) {
    std::vector<pollfd> polls;
    for (const size_t i : open) polls.push_back({(*processes)[i].text, POLLIN, 0});
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0)
      return Status(Code::kVerify, fmt::format("running the model took longer than {} s; give more with --timeout", timeout_s));
    if (poll(polls.data(), polls.size(), static_cast<int>(std::min<int64_t>(left, 60'000))) < 0 && errno != EINTR) {
      return Status(Code::kBug, fmt::format("poll: {}", strerror(errno)));
    }
    std::vector<size_t> still_open;
    std::vector<Ended> failed;
    for (size_t i = 0; i < polls.size(); ++i) {
      const size_t job = open[i];
      Process& process = (*processes)[job];
      if (!polls[i].revents || Drain(&process)) {
        still_open.push_back(job);
        continue;
      }
      const int status = children->Wait(process.pid);
      if (status != 0) failed.push_back({job, status, WrittenAt(RankFailurePath(JobPath(folder, job)))});
    }
    if (!failed.empty()) {
      const Ended& first = *std::min_element(failed.begin(), failed.end());
      return Failure(jobs[first.job], JobPath(folder, first.job), first.wait_status, (*processes)[first.job]);
    }
    open = std::move(still_open);
  }
  return Status();
}

}  // namespace

std::string RankFailurePath(const std::string& job_path) { return job_path + ".failure"; }

Status RunJobs(const std::vector<RankJob>& jobs, const TempFolder& folder, const RankOptions& options) {
  std::vector<Process> processes(jobs.size());
  Children children;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const std::string path = JobPath(folder, i);
    unlink(path.c_str());
    unlink(RankFailurePath(path).c_str());
    AUTOEP_RETURN_IF_ERROR(WriteFileAtomically(path, DumpJson(jobs[i].ToJson())));
  }
  const auto deadline = Clock::now() + std::chrono::seconds(options.timeout_s);
  for (size_t i = 0; i < jobs.size(); ++i) {
    AUTOEP_RETURN_IF_ERROR(Start(options.program, JobPath(folder, i), jobs.size(), &children, &processes[i]));
  }
  return WaitForAll(jobs, folder, deadline, options.timeout_s, &processes, &children);
}

}  // namespace autoep
