// Filters of the answers. Without this script every answer is shown and the filter bar is not.
(() => {
  const bar = document.querySelector(".filters");
  if (!bar) return;
  const buttons = [...bar.querySelectorAll("button")];
  const search = bar.querySelector("input");
  const samples = [...document.querySelectorAll(".sample")];
  const count = document.querySelector("[data-count]");
  let kind = "all";
  const apply = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const sample of samples) {
      const named = (sample.querySelector("figcaption")?.textContent ?? "").toLowerCase().includes(wanted);
      let any = false;
      for (const row of sample.querySelectorAll("tr")) {
        const fits = (kind === "all" || row.dataset.kind.split(" ").includes(kind))
          && (named || row.textContent.toLowerCase().includes(wanted));
        row.hidden = !fits;
        any ||= fits;
        shown += fits ? 1 : 0;
      }
      sample.hidden = !any;
    }
    count.textContent = shown;
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      kind = button.dataset.show;
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      apply();
    });
  }
  search.addEventListener("input", apply);
  bar.hidden = false;
})();
