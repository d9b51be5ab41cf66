// Replays the golden vectors of tests/golden (or of the folder in the first argument) in the emulator; and the
// replayer's own test, with vectors that the emulator makes and corrupted copies of them.
#include "golden/vectors.h"

#include <unistd.h>
#include <cute/tensor.hpp>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>

#include "golden/atoms.h"
#include "golden/in_emulator.h"
#include "self_test/check.h"

namespace {

using golden::Vector;

float as_float(uint32_t word) {
  float x;
  std::memcpy(&x, &word, sizeof(x));
  return x;
}

// Throws if the emulator's result is not close enough to the recorded one.
template <class Case>
void replay(Vector const& recorded) {
  if (recorded.lanes != Case::kLanes) {
    simt::fail("%s: the file has %d lanes, the atom %d", recorded.atom.c_str(), recorded.lanes, Case::kLanes);
  }
  if (recorded.in_words != Case::kIn || recorded.out_words != Case::kOut) {
    simt::fail("%s: the file has %d and %d words per lane, the atom %d and %d", recorded.atom.c_str(),
               recorded.in_words, recorded.out_words, Case::kIn, Case::kOut);
  }
  Vector emulated = recorded;
  std::fill(emulated.out.begin(), emulated.out.end(), 0);
  golden::run_in_emulator<Case>(emulated);
  float tolerance = 0;
  if constexpr (Case::kAccuracy != golden::Accuracy::kBitwise) {
    float largest = 0;
    for (int lane = 0; lane < Case::kLanes; ++lane) {
      for (int i = 0; i < Case::kOut; ++i) {
        largest = std::max({largest, std::abs(as_float(recorded.in[lane * Case::kIn + Case::kFirstC + i])),
                            std::abs(as_float(recorded.out[lane * Case::kOut + i]))});
      }
    }
    tolerance = std::ldexp(largest, Case::kAccuracy == golden::Accuracy::kFp22 ? -11 : -20);
  }
  for (size_t i = 0; i < recorded.out.size(); ++i) {
    uint32_t const got = emulated.out[i], expected = recorded.out[i];
    if (got == expected) continue;
    bool const is_bitwise = Case::kAccuracy == golden::Accuracy::kBitwise;  // then +0 is not -0
    if (!is_bitwise && std::abs(as_float(got) - as_float(expected)) <= tolerance) continue;
    simt::fail("%s: word %zu of lane %zu is 0x%08x, recorded is 0x%08x", recorded.atom.c_str(), i % Case::kOut,
               i / Case::kOut, got, expected);
  }
}

// The operands of an SS wgmma are what README.md says, and its result is their product.
template <class Case>
void check_product(Vector const& vector) {
  auto const* const a = reinterpret_cast<int8_t const*>(vector.in.data());
  auto const element = [a](int row, int k, int words, int first) {  // of a matrix with so many words per lane
    int const byte = row * Case::kImageRowBytes + k, word = byte / 4;
    return a[4 * (word / words * Case::kIn + first + word % words) + byte % 4];
  };
  int mismatches = 0;
  for (int lane = 0; lane < Case::kLanes; ++lane) {
    for (int i = 0; i < Case::kOut; ++i) {
      int const row = lane / 32 * 16 + i % 4 / 2 * 8 + lane % 32 / 4, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      int32_t sum = 0;
      for (int k = 0; k < Case::kImageRowBytes; ++k) {
        sum += element(row, k, Case::kA, 0) * element(column, k, Case::kB, Case::kA);
      }
      mismatches += static_cast<uint32_t>(sum) != vector.out[lane * Case::kOut + i];
    }
  }
  CHECK_EQUAL(mismatches, 0);
}

struct Registry {
  template <class Case>
  void visit(char const* name) {
    replayers[name] = replay<Case>;
    emulated[name] = golden::make_vector<Case>(name, 1);
    golden::run_in_emulator<Case>(emulated[name]);
    if constexpr (requires { Case::kImageRowBytes; } && Case::kAccuracy == golden::Accuracy::kBitwise) {
      check_product<Case>(emulated[name]);
    }
  }
  std::map<std::string, std::function<void(Vector const&)>> replayers;
  std::map<std::string, Vector> emulated;  // what the replayer is tested with
};

// Number of vectors in the file.
size_t replay_file(Registry const& registry, std::string const& path) {
  auto const vectors = golden::read_vectors(path);
  if (vectors.empty()) simt::fail("%s has no vectors", path.c_str());
  for (Vector const& vector : vectors) {
    auto const found = registry.replayers.find(vector.atom);
    if (found == registry.replayers.end()) simt::fail("%s: no atom %s", path.c_str(), vector.atom.c_str());
    found->second(vector);
  }
  return vectors.size();
}

// No word that a lane of one of these atoms brings can change unnoticed.
void check_every_word(Registry const& registry, std::string const& prefix) {
  for (auto const& [name, emulated] : registry.emulated) {
    if (name.compare(0, prefix.size(), prefix) != 0) continue;
    for (int word = 0; word < emulated.in_words; ++word) {
      Vector vector = emulated;
      vector.in[(word * 11 + 5) % vector.lanes * vector.in_words + word] = 0x7e7e7e7e;  // as floats, large ones
      CHECK_ERROR("recorded is", registry.replayers.at(name)(vector));
    }
  }
}

// The tolerance is wide enough for FP8 accumulators of 13 fraction bits.
void check_tolerance(Registry const& registry) {
  simt::Config const before = simt::configuration();
  simt::Config reduced = before;
  reduced.accumulate = simt::Accumulate::kReduced;
  simt::configure(reduced);
  for (auto const& [name, emulated] : registry.emulated) {
    std::string const error = self_test::error_of([&] { registry.replayers.at(name)(emulated); });
    self_test::report(error.empty(), __FILE__, __LINE__, error);
  }
  simt::configure(before);
}

void check_replayer(Registry const& registry) {
  auto const path = std::filesystem::temp_directory_path() / ("sage-golden-" + std::to_string(getpid()) + ".txt");
  auto const replay_changed = [&](auto change, bool truncate = false) {
    std::ostringstream text;
    golden::write_header(text, "the emulator");
    for (auto const& [name, emulated] : registry.emulated) {
      Vector vector = emulated;
      change(vector);
      golden::write_vector(text, vector);
    }
    std::ofstream(path) << text.str().substr(0, text.str().size() - (truncate ? 20 : 0));
    return replay_file(registry, path.string());
  };
  CHECK_EQUAL(replay_changed([](Vector&) {}), registry.emulated.size());
  for (auto const& [name, emulated] : registry.emulated) {
    CHECK_ERROR("word 0 of lane 17 is", replay_changed([&](Vector& vector) {
                  if (vector.atom == name) vector.out[17 * vector.out_words] ^= 0x00400001;
                }));
    CHECK_ERROR("recorded is", replay_changed([&](Vector& vector) {
                  // Of lanes whose rows every ldmatrix reads.
                  if (vector.atom == name) std::swap(vector.in[18 * vector.in_words], vector.in[29 * vector.in_words]);
                }));
  }
  CHECK_ERROR("recorded is 0x80000000", replay_changed([](Vector& vector) {  // -0 where a piece is filled with zeros
                if (vector.atom.find("_ZFILL") == std::string::npos) return;
                *std::find(vector.out.begin(), vector.out.end(), 0u) = 0x80000000;
              }));
  check_every_word(registry, "SM90_");
  check_tolerance(registry);
  CHECK_ERROR("no atom SM42_MMA", replay_changed([](Vector& vector) { vector.atom = "SM42_MMA"; }));
  CHECK_ERROR("words per lane, the atom", replay_changed([](Vector& vector) { vector.out_words = 1; }));
  CHECK_ERROR("has 32 lanes, the atom 128", replay_changed([](Vector& vector) { vector.lanes = 32; }));
  CHECK_ERROR("and 'lanes LANES', got", replay_changed([](Vector& vector) { vector.lanes = 0; }));
  CHECK_ERROR("expected", replay_changed([](Vector&) {}, true));
  std::ofstream(path) << "sage-golden 2\n";
  CHECK_ERROR(":1: expected 'sage-golden 1'", replay_file(registry, path.string()));
  std::filesystem::remove(path);
}

}  // namespace

int main(int argc, char** argv) {
  Registry registry;
  golden::visit_cases(registry);
  check_replayer(registry);
  auto const folder = argc > 1 ? std::filesystem::path(argv[1])
                               : std::filesystem::path(__FILE__).parent_path() / ".." / ".." / "golden";
  size_t num_vectors = 0;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".txt") continue;
    std::string const error = self_test::error_of([&] { num_vectors += replay_file(registry, entry.path().string()); });
    self_test::report(error.empty(), __FILE__, __LINE__, error);
  }
  std::printf("golden vectors: %zu replayed%s\n", num_vectors, num_vectors ? "" : ", there are none");
  return self_test::finish("golden vectors");
}
