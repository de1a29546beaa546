// SPDX-FileCopyrightText: 2026 The Ferry authors
// SPDX-License-Identifier: Apache-2.0
//
// What all calls do with their arrays.
#include "calls.h"

namespace nb = nanobind;

namespace ferry::python {

Tensor CallInputs::read(nb::handle value, const std::string& function, const std::string& argument, Access access,
                        std::shared_ptr<const void>* owner) {
  const Device& home = place_.device;
  Array array = read_array(value, {function, argument, home}, access);
  if (home.is_gpu()) streams_.look_at(value, array.place.stream, home.id);
  if (owner != nullptr) *owner = array.owner;
  owners_.push_back(std::move(array.owner));
  return array.tensor;
}

void* CallInputs::choose_stream(const std::string& function, const std::optional<StreamLike>& given) {
  const Device& home = place_.device;
  if (given) place_.stream = parse_stream(function, given->value, home.id);
  if (!home.is_gpu()) return nullptr;
  if (!given) place_.stream = streams_.choose(home.id);
  return place_.stream->handle;
}

}  // namespace ferry::python
