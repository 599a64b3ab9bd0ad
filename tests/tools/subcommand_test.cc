// SPDX-License-Identifier: Apache-2.0
// The registry of subcommands.
#include "tools/subcommand.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace autoep {
namespace {

template <char Letter>
class Named : public Subcommand {
 public:
  std::string name() const override { return std::string(1, Letter); }
  std::string summary() const override { return ""; }
  void Declare(CLI::App& app) override { AddJsonFlag(app); }
  Status Run(Console&) override { return Status(); }
};

TEST(SubcommandTest, RegisteredOnesComeSortedByName) {
  const RegisterSubcommand<Named<'b'>> b;
  const RegisterSubcommand<Named<'a'>> a;
  std::string names;
  for (const auto& command : MakeSubcommands()) names += command->name();
  EXPECT_EQ(names, "ab");
}

TEST(SubcommandTest, JsonIsOffUntilAsked) {
  Named<'x'> command;
  CLI::App app;
  command.Declare(app);
  EXPECT_FALSE(command.json());
  app.parse("--json");
  EXPECT_TRUE(command.json());
}

TEST(SubcommandDeathTest, ANameRegisteredTwiceAborts) {
  EXPECT_DEATH(
      {
        AddSubcommand([] { return std::make_unique<Named<'t'>>(); });
        AddSubcommand([] { return std::make_unique<Named<'t'>>(); });
        MakeSubcommands();
      },
      "two subcommands are named 't'");
}

}  // namespace
}  // namespace autoep
