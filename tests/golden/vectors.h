// Golden vectors: pseudo-random registers, and the text files that keep them with what an instruction made of them
// (format: README.md).
#pragma once
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "golden/atoms.h"

namespace golden {

constexpr char kMagic[] = "sage-golden 1";
constexpr int kDefaultLanes = 32;

struct Vector {
  std::string atom;
  int in_words = 0, out_words = 0;  // per lane
  int lanes = kDefaultLanes;
  std::vector<uint32_t> in, out;  // [lane][word]
};

// A float of the format with a random sign and fraction and an exponent of moderate size: sums neither overflow nor are
// mostly zeros, and there is no NaN, whose bits the hardware may choose.
inline uint32_t random_float(uint32_t bits, int exponent_bits, int fraction_bits, int exponents) {
  uint32_t const bias = (1u << (exponent_bits - 1)) - 1;
  uint32_t const fraction = bits & ((1u << fraction_bits) - 1), sign = bits >> 31;
  uint32_t const exponent = bias - exponents / 2 + (bits >> 24 & 127) % exponents;
  return sign << (exponent_bits + fraction_bits) | exponent << fraction_bits | fraction;
}

struct Random {
  uint64_t state;
  uint32_t operator()() {
    return static_cast<uint32_t>((state = state * 6364136223846793005u + 1442695040888963407u) >> 32);
  }
  uint32_t word(Content content) {
    switch (content) {
      case Content::kF16: return random_float((*this)(), 5, 10, 8) | random_float((*this)(), 5, 10, 8) << 16;
      case Content::kBF16: return random_float((*this)(), 8, 7, 8) | random_float((*this)(), 8, 7, 8) << 16;
      case Content::kF32: return random_float((*this)(), 8, 23, 12);
      case Content::kE4M3:
      case Content::kUE4M3: {
        uint32_t word = 0;
        for (int i = 0; i < 4; ++i) word = word << 8 | random_float((*this)(), 4, 3, 8);
        return content == Content::kE4M3 ? word : word & 0x7f7f7f7f;
      }
      case Content::kUE8M0: return 123 + (*this)() % 8;
      default: return (*this)();
    }
  }
};

// A vector without a result.
template <class Case>
Vector make_vector(char const* name, uint64_t seed) {
  Vector vector{name, Case::kIn, Case::kOut, Case::kLanes, {}, std::vector<uint32_t>(Case::kLanes * Case::kOut)};
  Random random{seed};
  for (int lane = 0; lane < Case::kLanes; ++lane) {
    for (int word = 0; word < Case::kIn; ++word) vector.in.push_back(random.word(Case::content(word)));
  }
  return vector;
}

inline void write_header(std::ostream& file, std::string const& device) { file << kMagic << "\n# " << device << "\n"; }

inline void write_vector(std::ostream& file, Vector const& vector) {
  file << "atom " << vector.atom << " in " << vector.in_words << " out " << vector.out_words;
  if (vector.lanes != kDefaultLanes) file << " lanes " << vector.lanes;
  file << "\n";
  auto const write_words = [&file](uint32_t const* words, int count) {
    for (int i = 0; i < count; ++i) {
      char text[16];
      std::snprintf(text, sizeof(text), "%s%08x", i ? " " : "", words[i]);
      file << text;
    }
  };
  for (int lane = 0; lane < vector.lanes; ++lane) {
    write_words(&vector.in[lane * vector.in_words], vector.in_words);
    file << " : ";
    write_words(&vector.out[lane * vector.out_words], vector.out_words);
    file << "\n";
  }
}

inline std::vector<Vector> read_vectors(std::string const& path) {
  std::ifstream file(path);
  std::string line;
  int number = 0;
  auto const fail = [&](std::string const& what) {
    throw std::runtime_error(path + ":" + std::to_string(number) + ": " + what);
  };
  auto const next = [&] {
    ++number;
    return static_cast<bool>(std::getline(file, line));
  };
  if (!next() || line != kMagic) fail(std::string("expected '") + kMagic + "'");
  std::vector<Vector> vectors;
  while (next()) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream header(line);
    std::string atom, in, out, lanes = "lanes";
    Vector vector;
    bool ok = static_cast<bool>(header >> atom >> vector.atom >> in >> vector.in_words >> out >> vector.out_words);
    if (ok && !(header >> std::ws).eof()) ok = header >> lanes >> vector.lanes && (header >> std::ws).eof();
    if (!ok || atom != "atom" || in != "in" || out != "out" || lanes != "lanes" || vector.in_words < 1 ||
        vector.out_words < 1 || vector.lanes < 1) {
      fail("expected 'atom NAME in WORDS out WORDS' or that and 'lanes LANES', got '" + line + "'");
    }
    for (int lane = 0; lane < vector.lanes; ++lane) {
      if (!next()) fail("the file ends before lane " + std::to_string(lane) + " of " + vector.atom);
      std::istringstream words(line);
      words >> std::hex;
      uint32_t word;
      std::string colon;
      for (int i = 0; i < vector.in_words && words >> word; ++i) vector.in.push_back(word);
      words >> colon;
      for (int i = 0; i < vector.out_words && words >> word; ++i) vector.out.push_back(word);
      if (colon != ":" || !words || !(words >> std::ws).eof() ||
          vector.in.size() != static_cast<size_t>((lane + 1) * vector.in_words) ||
          vector.out.size() != static_cast<size_t>((lane + 1) * vector.out_words)) {
        fail("expected " + std::to_string(vector.in_words) + " words, ':' and " + std::to_string(vector.out_words) +
             " words, got '" + line + "'");
      }
    }
    vectors.push_back(vector);
  }
  return vectors;
}

}  // namespace golden
