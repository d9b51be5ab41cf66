# Installs the library, its headers and the CMake package: find_package(sage) gives sage::sage.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/sage)
configure_package_config_file(cmake/sageConfig.cmake.in sageConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(sageConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(TARGETS sage EXPORT sageTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(DIRECTORY csrc/include/sage DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT sageTargets NAMESPACE sage:: DESTINATION ${package_dir} COMPONENT cpp)
install(FILES ${PROJECT_BINARY_DIR}/sageConfig.cmake ${PROJECT_BINARY_DIR}/sageConfigVersion.cmake
  cmake/SagePipToolkit.cmake
  DESTINATION ${package_dir} COMPONENT cpp)
