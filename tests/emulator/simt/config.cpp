#include "simt/config.h"

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

#include "simt/error.h"

namespace simt {
namespace {

void parse_schedule(char const* source, char const* text, Config* config) {
  if (!std::strcmp(text, "round_robin")) {
    config->schedule = Schedule::kRoundRobin;
    return;
  }
  std::string const value = text;
  size_t const colon = value.find(':');
  std::string const name = value.substr(0, colon), seed = colon == std::string::npos ? "" : value.substr(colon + 1);
  bool const seed_is_number = !seed.empty() && seed.size() < 20 && seed.find_first_not_of("0123456789") == seed.npos;
  if ((name != "random" && name != "priority") || !seed_is_number) {
    fail("%s must be round_robin, random:SEED or priority:SEED with a number as SEED, got '%s'", source, text);
  }
  config->schedule = name == "random" ? Schedule::kRandom : Schedule::kPriority;
  config->seed = std::strtoull(seed.c_str(), nullptr, 10);
}

void parse_async(char const* source, char const* text, Config* config) {
  if (!std::strcmp(text, "late")) {
    config->async = AsyncTiming::kLate;
  } else if (!std::strcmp(text, "early")) {
    config->async = AsyncTiming::kEarly;
  } else if (!std::strcmp(text, "random")) {
    config->async = AsyncTiming::kRandom;
  } else {
    fail("%s must be late, early or random, got '%s'", source, text);
  }
}

void parse_accumulate(char const* source, char const* text, Config* config) {
  if (!std::strcmp(text, "exact")) {
    config->accumulate = Accumulate::kExact;
  } else if (!std::strcmp(text, "reduced")) {
    config->accumulate = Accumulate::kReduced;
  } else {
    fail("%s must be exact or reduced, got '%s'", source, text);
  }
}

Config from_environment() {
  Config config;
  auto const read = [&config](char const* name, void (*parse)(char const*, char const*, Config*)) {
    char const* text = std::getenv(name);
    if (text && *text) parse(name, text, &config);
  };
  read("SAGE_EMULATOR_SCHEDULE", parse_schedule);
  read("SAGE_EMULATOR_ASYNC", parse_async);
  read("SAGE_EMULATOR_ACCUMULATE", parse_accumulate);
  return config;
}

std::mutex config_mutex;

Config& current() {  // under the mutex
  static Config config = from_environment();
  return config;
}

void update(char const* what, char const* text, void (*parse)(char const*, char const*, Config*)) {
  std::lock_guard const lock(config_mutex);
  parse(what, text, &current());
}

}  // namespace

Config configuration() {
  std::lock_guard const lock(config_mutex);
  return current();
}

void configure(Config const& config) {
  std::lock_guard const lock(config_mutex);
  current() = config;
}

void configure_schedule(char const* text) { update("schedule", text, parse_schedule); }
void configure_async(char const* text) { update("async", text, parse_async); }
void configure_accumulate(char const* text) { update("accumulate", text, parse_accumulate); }

}  // namespace simt
