// Before anything is painted: the colors chosen in Airflow's header, and whether Airflow's page is around this one.
"use strict";
(() => {
  const root = document.documentElement;
  let theme;
  try {
    theme = localStorage.getItem("theme");
  } catch {
    // Without storage: as the system.
  }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  if (window.top !== window.self) root.dataset.framed = "";
})();
