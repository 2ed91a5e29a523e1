// Copy path: to the clipboard, or, where a browser does not let us, the text is selected for Ctrl+C.
"use strict";
{
  const status = document.getElementById("copied");

  function select(element) {
    const range = document.createRange();
    range.selectNodeContents(element);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.addEventListener("click", async () => {
      const path = document.getElementById(button.dataset.copy);
      let copied = false;
      try {
        await navigator.clipboard.writeText(path.textContent);
        copied = true;
      } catch {
        select(path);
        copied = document.execCommand("copy");
      }
      status.textContent = copied ? `Copied: ${path.textContent}` : "The path is selected: press Ctrl+C.";
    });
  }

  // A second press while the first is on its way would change nothing; it only looks as if it might.
  for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", () => setTimeout(() => form.querySelector("button").disabled = true));
  }
}
