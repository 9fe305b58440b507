//===- Safetensors.cpp - tensors in files -----------------------------------------------------===//
#include "lib/Driver/Safetensors.h"

#include "llvm/ADT/APFloat.h"
#include "llvm/ADT/STLExtras.h"
#include "llvm/ADT/StringExtras.h"
#include "llvm/ADT/StringSwitch.h"
#include "llvm/Support/Endian.h"
#include "llvm/Support/JSON.h"
#include "llvm/Support/MathExtras.h"
#include "llvm/Support/MemoryBuffer.h"

using namespace kvpc;
using namespace kvpc::driver;

namespace {

/// Bounds what the JSON parser may allocate; the format's own limit.
constexpr uint64_t kMaxHeader = 100'000'000;

llvm::Error damaged(const llvm::Twine &what) {
  return llvm::createStringError("not a safetensors file: " + what);
}

/// Where an array's bytes are.
struct Extent {
  uint64_t begin, end;
  std::string name;
};

llvm::Expected<Array> parseShape(llvm::StringRef name, const llvm::json::Object &entry) {
  auto dtype = entry.getString("dtype");
  if (!dtype || elementSize(*dtype) == 0)
    return damaged("`" + name + "` has " +
                   (dtype ? "the unknown dtype `" + dtype->str() + "`" : std::string("no dtype")));
  const llvm::json::Array *shape = entry.getArray("shape");
  if (!shape)
    return damaged("`" + name + "` has no shape");
  Array array;
  array.dtype = dtype->str();
  for (const llvm::json::Value &extent : *shape) {
    auto n = extent.getAsInteger();
    if (!n || *n < 0)
      return damaged("`" + name + "` has an extent that is no count");
    array.shape.push_back(*n);
  }
  return array;
}

/// Bytes that the shape takes, or nothing where the product overflows.
std::optional<uint64_t> bytesOf(const Array &array) {
  int64_t bytes = elementSize(array.dtype);
  for (int64_t extent : array.shape)
    if (llvm::MulOverflow(bytes, extent, bytes))
      return std::nullopt;
  return bytes;
}

llvm::Expected<Extent> parseOffsets(llvm::StringRef name, const llvm::json::Object &entry,
                                    const Array &array, uint64_t available) {
  const llvm::json::Array *offsets = entry.getArray("data_offsets");
  auto number = [&](size_t i) -> std::optional<int64_t> {
    return offsets && offsets->size() == 2 ? (*offsets)[i].getAsInteger() : std::nullopt;
  };
  auto begin = number(0), end = number(1);
  if (!begin || !end || *begin < 0 || *end < *begin || static_cast<uint64_t>(*end) > available)
    return damaged("`" + name + "` does not lie inside the file");
  auto need = bytesOf(array);
  if (!need || *need != static_cast<uint64_t>(*end - *begin))
    return damaged("`" + name + "` has " + llvm::Twine(*end - *begin) + " bytes, which is not " +
                   array.str());
  return Extent{static_cast<uint64_t>(*begin), static_cast<uint64_t>(*end), name.str()};
}

/// No two arrays may share bytes.
llvm::Error checkApart(std::vector<Extent> &extents) {
  llvm::sort(extents, [](const Extent &a, const Extent &b) {
    return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
  });
  for (size_t i = 1; i < extents.size(); ++i)
    if (extents[i].begin < extents[i - 1].end)
      return damaged("`" + extents[i - 1].name + "` and `" + extents[i].name + "` overlap");
  return llvm::Error::success();
}

} // namespace

Array::Array(llvm::StringRef givenDtype, std::vector<int64_t> givenShape)
    : dtype(givenDtype.str()), shape(std::move(givenShape)) {
  bytes.resize(size() * elementSize(dtype));
}

int64_t Array::size() const {
  int64_t n = 1;
  for (int64_t extent : shape)
    n *= extent;
  return n;
}

std::string Array::str() const {
  std::string out = "[";
  llvm::raw_string_ostream os(out);
  llvm::interleaveComma(shape, os);
  os << "] " << dtype;
  return out;
}

float Array::number(int64_t i) const {
  if (dtype == "BF16")
    return fromBf16(get<uint16_t>(i));
  return dtype == "F16" ? fromF16(get<uint16_t>(i)) : get<float>(i);
}

int64_t driver::elementSize(llvm::StringRef dtype) {
  return llvm::StringSwitch<int64_t>(dtype)
      .Cases({"F64", "I64", "U64"}, 8)
      .Cases({"F32", "I32", "U32"}, 4)
      .Cases({"F16", "BF16", "I16", "U16"}, 2)
      .Cases({"BOOL", "U8", "I8"}, 1)
      .Default(0);
}

float driver::fromBf16(uint16_t bits) { return llvm::bit_cast<float>(uint32_t(bits) << 16); }

float driver::fromF16(uint16_t bits) {
  llvm::APFloat x(llvm::APFloat::IEEEhalf(), llvm::APInt(16, bits));
  bool exact;
  x.convert(llvm::APFloat::IEEEsingle(), llvm::APFloat::rmNearestTiesToEven, &exact);
  return x.convertToFloat();
}

uint16_t driver::toBf16(float x) {
  uint32_t bits = llvm::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000)
    return bits >> 16 | 0x40; // a NaN stays one
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

llvm::Expected<Arrays> driver::parseSafetensors(llvm::StringRef bytes) {
  if (bytes.size() < 8)
    return damaged("it has " + llvm::Twine(bytes.size()) + " bytes");
  uint64_t length = llvm::support::endian::read64le(bytes.data());
  if (length > kMaxHeader || length > bytes.size() - 8)
    return damaged("its header of " + llvm::Twine(length) + " bytes does not fit");
  auto header = llvm::json::parse(bytes.substr(8, length));
  if (!header) {
    llvm::consumeError(header.takeError());
    return damaged("its header is not JSON");
  }
  const llvm::json::Object *entries = header->getAsObject();
  if (!entries)
    return damaged("its header is not a JSON object");
  llvm::StringRef data = bytes.substr(8 + length);
  Arrays arrays;
  std::vector<Extent> extents;
  for (auto &[key, value] : *entries) {
    llvm::StringRef name = key;
    if (name == "__metadata__")
      continue;
    const llvm::json::Object *entry = value.getAsObject();
    if (!entry)
      return damaged("`" + name + "` is not described");
    auto array = parseShape(name, *entry);
    if (!array)
      return array.takeError();
    auto extent = parseOffsets(name, *entry, *array, data.size());
    if (!extent)
      return extent.takeError();
    llvm::StringRef own = data.slice(extent->begin, extent->end);
    array->bytes.assign(own.begin(), own.end());
    if (!own.empty())
      extents.push_back(*extent);
    arrays.emplace(name.str(), std::move(*array));
  }
  if (llvm::Error error = checkApart(extents))
    return error;
  return arrays;
}

llvm::Expected<Arrays> driver::readSafetensors(llvm::StringRef path) {
  auto buffer = llvm::MemoryBuffer::getFile(path, /*IsText=*/false,
                                            /*RequiresNullTerminator=*/false);
  if (!buffer)
    return llvm::createStringError("cannot read `" + path +
                                   "`: " + llvm::StringRef(buffer.getError().message()).lower() +
                                   " [kvpc-file]");
  auto arrays = parseSafetensors((*buffer)->getBuffer());
  if (!arrays)
    return llvm::createStringError("`" + path + "` is " + llvm::toString(arrays.takeError()) +
                                   " [kvpc-file]");
  return arrays;
}

void driver::writeSafetensors(const Arrays &arrays, llvm::raw_ostream &os) {
  // Wide elements first, as the format asks: readers map the file, and elements stand aligned.
  std::vector<const Arrays::value_type *> order;
  for (const Arrays::value_type &entry : arrays)
    order.push_back(&entry);
  llvm::sort(order, [](auto *a, auto *b) {
    int64_t sizeA = elementSize(a->second.dtype), sizeB = elementSize(b->second.dtype);
    return sizeA != sizeB ? sizeA > sizeB : a->first < b->first;
  });
  std::string header;
  llvm::raw_string_ostream text(header);
  llvm::json::OStream json(text);
  int64_t offset = 0;
  json.object([&] {
    for (auto *entry : order)
      json.attributeObject(entry->first, [&] {
        const Array &array = entry->second;
        int64_t end = offset + array.bytes.size();
        json.attribute("dtype", array.dtype);
        json.attribute("shape", llvm::json::Array(array.shape));
        json.attribute("data_offsets", llvm::json::Array{offset, end});
        offset = end;
      });
  });
  header.resize(llvm::alignTo(header.size(), 8), ' ');
  char length[8];
  llvm::support::endian::write64le(length, header.size());
  os.write(length, 8);
  os << header;
  for (auto *entry : order)
    os.write(entry->second.bytes.data(), entry->second.bytes.size());
}
