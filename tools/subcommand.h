// SPDX-License-Identifier: Apache-2.0
// A subcommand of the command line, and the registry that main walks. A new subcommand is one file: a class, and one
// RegisterSubcommand object at its end.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "plugin/io/status.h"
#include "tools/console.h"

namespace autoep {

// Groups of `autoep --help`. A subcommand in the group kHidden is not shown.
inline constexpr char kMainGroup[] = "Main job";
inline constexpr char kInspectGroup[] = "Look inside";
inline constexpr char kHidden[] = "";

class Subcommand {
 public:
  virtual ~Subcommand() = default;

  virtual std::string name() const = 0;     // "inspect"
  virtual std::string summary() const = 0;  // one line
  virtual std::string group() const { return kMainGroup; }
  virtual std::string examples() const { return ""; }  // printed under `--help`

  // Declares options and positionals that store into this object.
  virtual void Declare(CLI::App& app) = 0;

  // Data goes to console.Print, text for people to console.Note. A failure's sentence is printed by main, and as a JSON
  // document too when json() is set and nothing else was printed; a failure without a sentence only sets the exit code.
  virtual Status Run(Console& console) = 0;

  bool json() const { return json_; }

 protected:
  void AddJsonFlag(CLI::App& app);

 private:
  bool json_ = false;
};

using SubcommandFactory = std::function<std::unique_ptr<Subcommand>()>;

// New objects of all registered subcommands, sorted by name. A name registered twice aborts.
std::vector<std::unique_ptr<Subcommand>> MakeSubcommands();

void AddSubcommand(SubcommandFactory factory);

template <typename T>
struct RegisterSubcommand {
  RegisterSubcommand() {
    AddSubcommand([] { return std::make_unique<T>(); });
  }
};

}  // namespace autoep
