# SPDX-FileCopyrightText: 2026 The Ferry authors
# SPDX-License-Identifier: Apache-2.0
#
# Networks between machines. libfabric is opened at run time and never linked; only its headers are needed here, and AUTO goes
# without them.
set(FERRY_HAS_LIBFABRIC OFF)
if(NOT FERRY_LIBFABRIC STREQUAL "OFF")
  find_path(FERRY_LIBFABRIC_INCLUDE_DIR rdma/fi_rma.h)
  mark_as_advanced(FERRY_LIBFABRIC_INCLUDE_DIR)
  if(FERRY_LIBFABRIC_INCLUDE_DIR)
    set(FERRY_HAS_LIBFABRIC ON)
  elseif(FERRY_LIBFABRIC STREQUAL "ON")
    message(FATAL_ERROR "FERRY_LIBFABRIC=ON, but rdma/fi_rma.h was not found; install libfabric's headers (Debian: libfabric-dev) or use FERRY_LIBFABRIC=AUTO")
  endif()
endif()
message(STATUS "libfabric networks: ${FERRY_HAS_LIBFABRIC}")

# The sources of the networks, or of what says that they are not there.
set(ferry_network_folder no_fabric)
if(FERRY_HAS_LIBFABRIC)
  set(ferry_network_folder fabric)
endif()
