# The Python that builds: the extension modules need it; otherwise it is only asked for packages it may have.
if(SAGE_PYTHON OR SAGE_EMULATOR)
  find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)
else()
  find_package(Python 3.10 QUIET COMPONENTS Interpreter)
endif()

# The folders of an importable package of that Python, without importing it; empty where there is none.
function(sage_python_package_dirs package result)
  set(dirs "")
  if(Python_Interpreter_FOUND)
    execute_process(
      COMMAND ${Python_EXECUTABLE} -c "
import importlib.util, sys
try:
    spec = importlib.util.find_spec(sys.argv[1])
except ModuleNotFoundError:  # the parent of a dotted name
    spec = None
print(*(spec and spec.submodule_search_locations or []), sep=';')" ${package}
      OUTPUT_VARIABLE dirs OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  endif()
  set(${result} "${dirs}" PARENT_SCOPE)
endfunction()
