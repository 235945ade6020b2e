// What check() lets through, run() survives: random operands in memory of exactly their extent, random data, attributes
// and tables, on every instruction set. Each operand ends where a page begins that may not be touched, so that a plain
// build notices too.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "test/target.h"

namespace meshwork {
namespace {

// Operands as "type dims": T is the drawn type, S its statistics' type (f32, f64 for f64), i is i32; letters are dims
// drawn once for a case, digits are themselves. `inPlace`: output i is input inPlace[i]'s memory.
struct Template {
  Op op;
  std::vector<const char*> in;
  std::vector<const char*> out;
  std::vector<int> attrs;  // largest literal; the kinds are kOpInfo's
  int optional = 0;        // that many of the last inputs may be absent
  std::vector<int> inPlace = {};
};

const std::vector<Template>& templates() {
  static const std::vector<Template> all = {
      {Op::elementwise, {"Tmn", "Tmn", "imn"}, {"Tmn", "Tmn"}, {}, 2},
      {Op::reduce, {"Tmnk"}, {"Tm1k"}, {2}},
      {Op::reduce, {"Tmn"}, {"S1n"}, {2}},
      {Op::copy, {"Tmnk"}, {"Tmnk"}, {}},
      {Op::matmul, {"Tbmk", "Tbkn", "Sn", "Tbmn"}, {"Tbmn"}, {31, 0}, 2},
      {Op::softmax, {"Tmn"}, {"Tmn"}, {}},
      {Op::softmax_grad, {"Tmn", "Tmn"}, {"Tmn"}, {}},
      {Op::layer_norm, {"Tmn", "Sn", "Sn"}, {"Tmn", "Sm", "Sm"}, {0}},
      {Op::layer_norm_grad, {"Tmn", "Tmn", "Sn", "Sm", "Sm"}, {"Tmn", "Sn", "Sn"}, {}},
      {Op::rms_norm, {"Tmn", "Sn"}, {"Tmn", "Sm"}, {0}},
      {Op::rms_norm_grad, {"Tmn", "Tmn", "Sn", "Sm"}, {"Tmn", "Sn"}, {}},
      {Op::embedding, {"Tvn", "im"}, {"Tmn"}, {0}},
      {Op::embedding_grad, {"Tmn", "im"}, {"Svn"}, {0}},
      {Op::cross_entropy, {"Tmn", "im"}, {"Sm", "Sm"}, {3}},
      {Op::cross_entropy_partial, {"Tmn", "im", "Sm"}, {"Sm", "Sm"}, {3, 0}},
      {Op::cross_entropy_grad, {"Tmn", "im", "Sm", "Sm"}, {"Tmn"}, {3, 0}},
      {Op::rope, {"Tbmh2", "ibm", "S1"}, {"Tbmh2"}, {1}},
      {Op::rope, {"Tbmh8", "ibm", "S4"}, {"Tbmh8"}, {1}},
      {Op::attention, {"Tbtgd", "Tbsgd", "Tbsge", "ibt", "ibs", "ibt", "ibs"}, {"Tbtge", "Sbgt"}, {7, 0}, 4},
      {Op::attention_grad,
       {"Tbtgd", "Tbsgd", "Tbsge", "Tbtge", "Sbgt", "Tbtge", "ibt", "ibs", "ibt", "ibs"},
       {"Tbtgd", "Tbsgd", "Tbsge"},
       {7, 0},
       4},
      {Op::random, {"i3", "im", "in"}, {"Tmn"}, {2, 9, 3}, 2},
      {Op::square_sum, {"Tm"}, {"S1"}, {}},
      {Op::adamw, {"Tm", "Tm", "Tm", "Tm", "T", "T", "T", "T", "i1"}, {"Tm", "Tm", "Tm"}, {0, 0, 0, 0}, 0, {0, 2, 3}},
      {Op::adamw,
       {"Tm", "Tm", "Tm", "Tm", "T1", "T1", "T1", "T1", "i1"},
       {"Tm", "Tm", "Tm"},
       {0, 0, 0, 0},
       0,
       {0, 2, 3}},
      {Op::sgd, {"Tm", "Tm", "Tm", "T1", "T1", "i1"}, {"Tm", "Tm"}, {0, 0, 1}, 0, {0, 2}},
      {Op::shard_slice, {"Tmnk"}, {"Tmhk"}, {2, 0}},
      {Op::topk, {"Tmn"}, {"Tm1", "im1"}, {}},
      {Op::expert_capacity, {"imnk"}, {"imnk"}, {40, 20}},
      {Op::expert_sort, {"im"}, {"im", "im", "ie"}, {}},
      {Op::permute_rows, {"Tmkn", "ih"}, {"Thn"}, {}},
      {Op::grouped_matmul, {"Tmk", "ig", "Tekn"}, {"Tmn"}, {0}},
      {Op::grouped_matmul_grad, {"Tmk", "Tmn", "ig"}, {"Tekn"}, {0}},
      {Op::expert_gate, {"Tmn", "Tmn", "ig"}, {"Tmn"}, {3}},
      {Op::expert_gate_grad, {"Tmn", "Tmn", "ig", "Tmn"}, {"Tmn", "Tmn"}, {3}},
      {Op::expert_combine, {"Tmkn", "Tmk"}, {"Tmn"}, {}},
      {Op::expert_combine_grad, {"Tmkn", "Tmn"}, {"Tmk"}, {}},
  };
  return all;
}

// Places for operands, each followed by a page that may not be touched and preceded by bytes that must stay as they
// are.
class GuardedMemory {
 public:
  static constexpr size_t kPlaces = 16;
  static constexpr size_t kBytes = size_t{1} << 18;

  GuardedMemory() : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    void* base = mmap(nullptr, kPlaces * (kBytes + page_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base_ = base == MAP_FAILED ? nullptr : static_cast<std::byte*>(base);
    for (size_t i = 0; base_ != nullptr && i < kPlaces; ++i) mprotect(end(i), page_, PROT_NONE);
  }
  ~GuardedMemory() {
    if (base_ != nullptr) munmap(base_, kPlaces * (kBytes + page_));
  }
  std::byte* place(size_t index, size_t bytes) {
    std::byte* begin = end(index) - bytes;
    std::memset(begin - kCanary, 0x5a, kCanary);
    return begin;
  }
  bool intact(const std::byte* begin) const {
    return std::all_of(begin - kCanary, begin, [](std::byte b) { return b == std::byte{0x5a}; });
  }

 private:
  static constexpr size_t kCanary = 64;
  std::byte* end(size_t index) { return base_ + index * (kBytes + page_) + kBytes; }
  const size_t page_;
  std::byte* base_ = nullptr;
};

class Fuzzer {
 public:
  explicit Fuzzer(uint32_t seed) : random_(seed) {
    for (double& value : floats_) value = static_cast<double>(pick(7)) / 4 - 0.5;
  }

  // Returns whether check() let the case through.
  bool once(const Template& base, Isa isa) {
    const Kernel* kernel = test::kernelOf(base.op, isa);
    if (kernel == nullptr) return false;
    draw(base);
    if (chance(3)) mutate();
    if (!decoderAccepts(base.op)) return false;
    for (int32_t& word : table_) word = anyInt();
    Call call = makeCall();
    call.table = nullptr;
    call.pool = nullptr;
    if (!kernel->check(call).ok()) return false;
    if (!allocate(base)) return false;
    call = makeCall();
    test::runKernel(*kernel, call, 1);
    for (const std::byte* begin : data_) {
      if (memory_.intact(begin)) continue;
      test::fail(__FILE__, __LINE__,
                 std::string(kOpInfo[static_cast<int>(base.op)].name) + " writes before an operand");
    }
    return true;
  }

 private:
  uint32_t pick(uint32_t n) { return static_cast<uint32_t>(random_() % n); }
  bool chance(uint32_t n) { return pick(n) == 0; }
  int32_t anyInt() {
    if (chance(4)) return static_cast<int32_t>(random_());
    return static_cast<int32_t>(pick(24)) - 4;
  }

  void draw(const Template& base) {
    constexpr int64_t sizes[] = {1, 2, 3, 5, 8, 17, 33, 0};
    for (int64_t& dim : letters_) dim = sizes[pick(chance(4) ? 8 : 6)];
    constexpr DType types[] = {DType::f32, DType::f64, DType::bf16, DType::i32, DType::f16, DType::boolean};
    type_ = types[pick(chance(5) ? 6 : 3)];
    inputs_ = base.in.size() - (base.optional > 0 ? pick(static_cast<uint32_t>(base.optional) + 1) : 0);
    views_.clear();
    for (size_t i = 0; i < inputs_; ++i) views_.push_back(viewOf(base.in[i]));
    for (const char* text : base.out) views_.push_back(viewOf(text));
    attributes(base);
  }

  View viewOf(const char* text) {
    View view;
    view.dtype = text[0] == 'i' ? DType::i32 : text[0] == 'S' && type_ != DType::f64 ? DType::f32 : type_;
    if (text[0] == 'S' && type_ == DType::i32) view.dtype = DType::i32;
    view.rank = static_cast<int32_t>(std::strlen(text)) - 1;
    int64_t stride = 1;
    const int64_t gap = chance(4) ? 1 + pick(3) : 0;
    for (int d = view.rank - 1; d >= 0; --d) {
      const char c = text[d + 1];
      view.dims[d] = c >= '0' && c <= '9' ? c - '0' : letters_[static_cast<size_t>(c - 'a')];
      view.strides[d] = stride;
      stride *= std::max<int64_t>(view.dims[d], 1);
      if (d == view.rank - 1) stride += gap;
    }
    if (view.rank >= 2 && chance(6)) {  // a transposed view, as matmul's weights are
      const int a = view.rank - 1, b = view.rank - 2;
      view.strides[a] = std::max<int64_t>(view.dims[b], 1);
      view.strides[b] = 1;
    }
    if (view.rank >= 1 && chance(8)) view.strides[pick(static_cast<uint32_t>(view.rank))] = 0;
    return view;
  }

  void attributes(const Template& base) {
    attrs_.clear();
    const char* kinds = kOpInfo[static_cast<int>(base.op)].attrs;
    for (size_t i = 0; i < base.attrs.size(); ++i) {
      const uint32_t n = kinds[i] == 'i' ? static_cast<uint32_t>(base.attrs[i]) + 1 : static_cast<uint32_t>(kWords);
      attrs_.push_back(static_cast<int32_t>(pick(n)));
    }
    if (base.op == Op::elementwise) expression();
    if (base.op == Op::matmul || base.op == Op::attention || base.op == Op::attention_grad) matchFlags(base);
    if (base.op == Op::random) {
      attrs_[2] = inputs_ >= 1 && inputs_ <= 3 ? (1 << (inputs_ - 1)) - 1 : attrs_[2];
      for (int d = 0; d < views_.back().rank; ++d) {
        attrs_.push_back(static_cast<int32_t>(pick(kWords + 1)) - 1);
        attrs_.push_back(static_cast<int32_t>(views_.back().dims[d] + pick(4)));
      }
    }
  }

  // Mostly, the flags say which optional inputs there are.
  void matchFlags(const Template& base) {
    const auto given = static_cast<int32_t>(inputs_ - (base.in.size() - static_cast<size_t>(base.optional)));
    if (base.op == Op::matmul) {
      attrs_[0] = (attrs_[0] & ~6) | (given > 0 ? 2 : 0) | (given > 1 ? 4 : 0);
    } else {
      attrs_[0] = (attrs_[0] & 1) | (given >= 2 ? 2 : 0) | (given >= 4 ? 4 : 0);
    }
  }

  void expression() {
    const auto count = static_cast<int32_t>(pick(6));
    attrs_ = {count};
    for (int32_t k = 0; k < count; ++k) {
      const uint32_t known = static_cast<uint32_t>(inputs_) + static_cast<uint32_t>(k);
      const auto value = [&] { return static_cast<int32_t>(pick(known)); };
      const auto op = static_cast<int32_t>(pick(kEOpCount));
      attrs_.insert(attrs_.end(), {op, static_cast<int32_t>(pick(chance(3) ? 3 : 1)), value(), value(), value()});
      if (op == static_cast<int32_t>(EOp::iota_))
        attrs_[attrs_.size() - 2] = static_cast<int32_t>(pick(kWords + 1)) - 1;
    }
    const size_t outputs = views_.size() - inputs_;
    attrs_.push_back(static_cast<int32_t>(outputs));
    for (size_t i = 0; i < outputs; ++i) {
      attrs_.push_back(static_cast<int32_t>(pick(static_cast<uint32_t>(inputs_) + static_cast<uint32_t>(count))));
    }
  }

  void mutate() {
    View& view = views_[pick(static_cast<uint32_t>(views_.size()))];
    const auto d = static_cast<size_t>(view.rank > 0 ? pick(static_cast<uint32_t>(view.rank)) : 0);
    switch (pick(6)) {
      case 0:
        view.dims[d] = pick(20);
        break;
      case 1:
        view.strides[d] = pick(40);
        break;
      case 2:
        view.dtype = static_cast<DType>(pick(kDTypeCount));
        break;
      case 3:
        if (view.rank < kMaxRank) view.dims[view.rank] = view.strides[view.rank] = 1, ++view.rank;
        break;
      case 4:
        if (!attrs_.empty()) attrs_[pick(static_cast<uint32_t>(attrs_.size()))] = anyInt();
        break;
      default:
        attrs_.push_back(anyInt());
    }
  }

  // What the decoder has already held: the number of attributes, and float and table words inside their sections.
  bool decoderAccepts(Op op) const {
    const std::string kinds = kOpInfo[static_cast<int>(op)].attrs;
    const bool rest = !kinds.empty() && kinds.back() == '*';
    const size_t named = rest ? kinds.size() - 2 : kinds.size();
    if (attrs_.size() < named || (!rest && attrs_.size() > named)) return false;
    for (size_t i = 0; i < named; ++i) {
      if (kinds[i] != 'i' && (attrs_[i] < 0 || attrs_[i] >= kWords)) return false;
    }
    return true;
  }

  Call makeCall() {
    operands_.resize(views_.size());
    for (size_t i = 0; i < views_.size(); ++i) {
      operands_[i] = Operand{i < data_.size() ? data_[i] : nullptr, &views_[i]};
    }
    Call call;
    call.in = operands_.data();
    call.out = operands_.data() + inputs_;
    call.inputs = static_cast<int>(inputs_);
    call.outputs = static_cast<int>(views_.size() - inputs_);
    call.attrs = attrs_.data();
    call.attrCount = static_cast<int>(attrs_.size());
    call.floats = floats_;
    call.floatCount = kWords;
    call.table = table_;
    call.tableCount = kWords;
    return call;
  }

  static int64_t extent(const View& view) {
    int64_t last = 0;
    for (int d = 0; d < view.rank; ++d) {
      if (view.dims[d] == 0) return 0;
      last += (view.dims[d] - 1) * view.strides[d];
    }
    return (last + 1) * dtypeSize(view.dtype);
  }

  // Memory of exactly each operand's extent, full of random bits. False where a mutated operand is too large for it.
  bool allocate(const Template& base) {
    data_.assign(views_.size(), nullptr);
    for (size_t i = 0; i < views_.size(); ++i) {
      const int64_t bytes = extent(views_[i]);
      if (bytes > static_cast<int64_t>(GuardedMemory::kBytes) - 4096) return false;
      const size_t output = i - inputs_;
      if (i >= inputs_ && output < base.inPlace.size()) {
        data_[i] = data_[static_cast<size_t>(base.inPlace[output])];
        continue;
      }
      data_[i] = memory_.place(i, static_cast<size_t>(bytes));
      fill(views_[i].dtype, data_[i], static_cast<size_t>(bytes));
    }
    return true;
  }

  void fill(DType dtype, std::byte* data, size_t bytes) {
    const bool wild = chance(3);
    for (size_t at = 0; at < bytes; ++at) {
      data[at] = dtype == DType::boolean ? std::byte{static_cast<unsigned char>(pick(2))}
                                         : std::byte{static_cast<unsigned char>(random_())};
    }
    if (wild) return;
    for (size_t at = 0; at + 4 <= bytes && (dtype == DType::i32 || dtype == DType::f32); at += 4) {
      const int32_t whole = anyInt();
      const float real = static_cast<float>(whole) / 7;
      if (dtype == DType::i32) std::memcpy(data + at, &whole, 4);
      if (dtype == DType::f32) std::memcpy(data + at, &real, 4);
    }
  }

  static constexpr int kWords = 8;
  std::mt19937 random_;
  double floats_[kWords] = {};
  int32_t table_[kWords] = {};
  int64_t letters_[26] = {};
  DType type_ = DType::f32;
  size_t inputs_ = 0;
  std::vector<View> views_;
  std::vector<int32_t> attrs_;
  std::vector<Operand> operands_;
  GuardedMemory memory_;
  std::vector<std::byte*> data_;
};

TEST(kernel_fuzz) {
  for (const Template& base : templates()) {
    for (int isa = 0; isa < kIsaCount; ++isa) {
      if (test::kernelOf(base.op, static_cast<Isa>(isa)) == nullptr) continue;
      Fuzzer fuzzer(static_cast<uint32_t>(base.op) * 10 + static_cast<uint32_t>(isa));
      int ran = 0;
      for (int i = 0; i < test::kFuzzCases; ++i) ran += fuzzer.once(base, static_cast<Isa>(isa));
      if (ran < 20)
        test::fail(__FILE__, __LINE__,
                   std::string("too few cases pass the check of ") + kOpInfo[static_cast<int>(base.op)].name + ": " +
                       std::to_string(ran));
    }
  }
}

}  // namespace
}  // namespace meshwork
