// Sets light or dark before anything is drawn, so that the page never flashes. Not a module: those run later.
"use strict";
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => localStorage.getItem("pagoda-theme");
  const apply = () => {
    document.documentElement.dataset.theme = stored() ?? (system.matches ? "dark" : "light");
    document.dispatchEvent(new Event("themechange"));
  };
  apply();
  system.addEventListener("change", apply);
  document.addEventListener("themetoggle", () => {
    const wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    // The system's own choice need not be remembered: the page goes on following it.
    if (wanted === (system.matches ? "dark" : "light")) localStorage.removeItem("pagoda-theme");
    else localStorage.setItem("pagoda-theme", wanted);
    apply();
  });
})();
