mod files;
mod kernel;
